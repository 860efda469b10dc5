"""Tests of `llmgateway/service`."""
