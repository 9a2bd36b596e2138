"""Measure the engine beside its peers, and against the limits of the machine.

Results go to `results/`.
"""
