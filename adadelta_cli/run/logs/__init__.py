"""Logs of trainings for other programs to show: `run --log KIND:WHERE`."""
