"""Which members are alive: SWIM."""
