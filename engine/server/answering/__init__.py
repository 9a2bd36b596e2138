"""A request for text: what may be asked, and the answer as it grows."""
