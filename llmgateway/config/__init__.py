"""A file becomes a Config, or all its problems."""
