"""Check the solutions: one file a step, whose PARTS are run in order until one raises Wrong."""
