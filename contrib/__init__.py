"""Parts for other engines."""
