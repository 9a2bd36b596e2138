"""Answer a request for text: check it, run it, and write the answer as it grows."""
