"""Topics, direct messages and broadcast between subscribers on any nodes."""
