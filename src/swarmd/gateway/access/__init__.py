"""Who may ask what: callers, their rules, API keys, sessions and limits."""
