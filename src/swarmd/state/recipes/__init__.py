"""Locks, elections and barriers over the strong store: who may act now, with a fence."""
