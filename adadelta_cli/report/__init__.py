"""Rows to CSV, JSON, tables and plots, a module a command.

Nothing is computed here; nothing is formatted elsewhere.
"""
