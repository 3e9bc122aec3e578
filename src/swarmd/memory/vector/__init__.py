"""Vectors with what they stand for, and which of them are nearest to another."""
