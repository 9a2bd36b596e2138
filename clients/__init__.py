"""Clients of other people against a real server: `make clients` (docs/CLIENTS.md has the table)."""
