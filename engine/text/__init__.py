"""TRANSLATES: text to token ids, token ids to text."""
