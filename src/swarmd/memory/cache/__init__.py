"""Values that cost something to compute: computed once in the whole swarm, and kept for a while."""
