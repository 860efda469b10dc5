"""What is fuzzed (`scripts/fuzz`), and its corpus without a fuzzer."""
