"""swarmd turns the machines of a LAN into one swarm that runs agents."""

__version__ = "0.1.0"
