"""Everything that can take a step, by name."""
