"""REMEMBERS: the record of what the engine did. Imports nothing of the engine."""
