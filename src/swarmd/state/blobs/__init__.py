"""Bytes named by their hash."""
