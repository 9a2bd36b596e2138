"""Decide which request runs, on which blocks. Imports no torch."""
