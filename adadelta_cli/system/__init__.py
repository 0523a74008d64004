"""What this machine is, and the processes that work runs in."""
