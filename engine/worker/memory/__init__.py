"""The memory of keys and values: its size, its dtype, its pages, the way to the host."""
