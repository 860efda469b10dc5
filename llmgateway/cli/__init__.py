"""What a shell shows."""
