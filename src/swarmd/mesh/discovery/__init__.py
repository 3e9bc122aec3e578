"""How nodes find a first address: static seeds and mDNS."""
