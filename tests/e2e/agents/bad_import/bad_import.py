"""Cannot even be imported."""

raise RuntimeError("no licence server")
