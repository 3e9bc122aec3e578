"""Secrets: encrypted in the strong store, under keys that are not in it."""
