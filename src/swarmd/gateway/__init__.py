"""How the outside asks: the HTTP API."""
