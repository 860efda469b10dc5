"""Tests of `llmgateway/web`."""
