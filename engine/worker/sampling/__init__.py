"""From logits to tokens: rules, penalties, the draw, log-probabilities."""
