"""How bytes travel between nodes: UDP, TLS streams, memory."""
