"""Manage the memory of keys and values: its size, dtype and pages, and swapping to the host."""
