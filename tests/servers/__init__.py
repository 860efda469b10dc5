"""Tests of `llmgateway/servers`."""
