"""Hold the exercises as you get them. They are copied to exercises/; edit them there."""
