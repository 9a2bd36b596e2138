"""Run a record's arrivals again, under other settings, through the real core: no torch, no model.

    python -m engine.whatif RECORD --num-gpu-blocks 200 --max-num-batched-tokens 512

The core, its scheduler and its pool are the engine's own. Only the worker is simulated: it moves a
clock by step times that are fitted to the record.
"""
