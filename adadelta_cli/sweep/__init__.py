"""`sweep`: many runs of one config, on worker processes or a Dask cluster."""
