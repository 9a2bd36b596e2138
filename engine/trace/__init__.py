"""Record what the engine did. Imports nothing of the engine."""
