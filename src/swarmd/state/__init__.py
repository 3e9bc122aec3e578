"""What the swarm agrees on."""
