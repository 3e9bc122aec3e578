"""One process, one seed: the real machines in a simulated world."""
