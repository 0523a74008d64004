"""The AdaDelta update in one pass over memory, for the processors that have a kernel."""
