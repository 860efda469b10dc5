"""Connections, both ways: to the clients, and to the providers."""
