"""Keep and serve the record: the window, the subscribers, the viewers."""
