"""Define model architectures as plain torch modules, and load their weights."""
