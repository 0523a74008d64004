"""Trainings on several processes or machines, through MXNet's parameter server."""
