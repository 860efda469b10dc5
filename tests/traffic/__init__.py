"""Tests of `llmgateway/traffic`."""
