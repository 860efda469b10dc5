"""The gateway wired and running."""
