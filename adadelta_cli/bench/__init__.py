"""`bench` and `compare`: time the implementations, and compare two results."""
