"""What clients and models say: the endpoints, their dialects, and what can be read off passing bytes."""
