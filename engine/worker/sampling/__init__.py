"""Turn logits into tokens: rules, penalties, the draw, log-probabilities."""
