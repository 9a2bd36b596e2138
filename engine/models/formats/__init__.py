"""Formats of weight files that aren't transformers' own: recognised, read, converted."""
