"""COMPUTES: a StepPlan in, tokens out."""
