"""Tests of `llmgateway/cli`."""
