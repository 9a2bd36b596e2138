"""Compute what a StepPlan says, and return its tokens."""
