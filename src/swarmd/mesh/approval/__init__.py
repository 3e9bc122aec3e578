"""Joining without a token: a node asks, waits, and an admin approves it."""
