"""Compute: take a StepPlan, return tokens."""
