"""Who may speak: keys, genesis, the authority log, tokens, credentials, TLS."""
