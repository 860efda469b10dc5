"""What each kind of LLM server tells of itself."""
