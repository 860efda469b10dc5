"""The providers: their state, their health, the way to them."""
