"""What there is to choose from, and what each key of a config means."""
