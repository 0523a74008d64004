"""AdaDelta for MXNet: its C interface, the fused step, and the optimizer."""
