"""What the swarm remembers."""
