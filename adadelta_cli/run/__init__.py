"""`run`: train a problem that a config describes."""
