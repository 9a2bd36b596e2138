"""What needs a GPU to be proved and measured; `--dry-run` goes through all of it without one."""
