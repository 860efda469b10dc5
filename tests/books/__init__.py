"""Tests of `llmgateway/books`."""
