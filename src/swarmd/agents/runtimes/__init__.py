"""How an agent's code is run."""
