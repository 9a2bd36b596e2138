"""Let a real vLLM write this engine's record, as far as it tells what it does.

`scheduler.py` has the classes that vLLM is started with; README.md says how, and what is told.
"""
