"""Tests of `llmgateway/http`."""
