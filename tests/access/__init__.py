"""Tests of `llmgateway/access`."""
