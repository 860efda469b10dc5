"""What HTTP shows of the gateway itself."""
