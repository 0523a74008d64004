"""`verify`: check that implementations take the right step."""
