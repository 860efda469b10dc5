"""A self-hosted gateway for home and small-office LLM servers."""

__version__ = "0.1.0"
