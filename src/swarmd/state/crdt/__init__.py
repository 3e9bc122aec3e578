"""The eventual store: written on any side of a partition, and equal everywhere afterwards."""
