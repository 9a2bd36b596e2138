"""Run other people's clients against a real server: `make clients`.

docs/CLIENTS.md has the table.
"""
