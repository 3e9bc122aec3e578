"""The commands of swarmctl, one module per noun, imported only when typed."""
