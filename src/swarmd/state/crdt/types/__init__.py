"""What the cells of a key mean: one module per type, and how maps nest them (`values`)."""
