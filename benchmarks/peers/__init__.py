"""Measure other engines on the same machine, with the same weights and the same requests."""
