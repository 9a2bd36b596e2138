"""Take apart what a model writes: reasoning, content, and calls of tools."""
