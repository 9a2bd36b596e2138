"""The `glasshouse` command: one name for the programs of the engine."""
