"""Who works: definitions, bundles, the supervisor."""
