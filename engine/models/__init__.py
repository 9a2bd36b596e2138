"""The models: architectures in plain torch modules, and how their weights are loaded."""
