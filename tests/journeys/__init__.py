"""Journeys: what people see, through a real gateway and real sockets."""
