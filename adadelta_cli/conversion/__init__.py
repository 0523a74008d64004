"""Move the states of an AdaDelta optimizer between MXNet, PyTorch and NumPy."""
