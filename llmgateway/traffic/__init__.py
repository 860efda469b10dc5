"""Who is served next, and where."""
