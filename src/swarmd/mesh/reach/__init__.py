"""Reach: what gets through between this node and another, and in which direction."""
