"""Ground floor: ids, errors, clocks, chance, limits, files. Standard library only."""
