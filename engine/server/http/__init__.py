"""Handle HTTP itself: the key, limits, errors, server-sent events."""
