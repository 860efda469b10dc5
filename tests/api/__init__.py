"""Tests of `llmgateway/api`."""
