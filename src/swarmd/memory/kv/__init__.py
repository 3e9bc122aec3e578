"""Shared memory: values by key that any node reads and writes, whoever else is in reach."""
