"""The strong store: hardened Raft under a deterministic state machine."""
