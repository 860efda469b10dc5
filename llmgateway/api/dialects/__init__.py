"""One file for each dialect: its value, and how its errors look."""
