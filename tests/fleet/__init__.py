"""Tests of `llmgateway/fleet`."""
