"""Prove and measure what needs a GPU; `--dry-run` goes through all of it without one."""
