"""Tests of `llmgateway/config`."""
