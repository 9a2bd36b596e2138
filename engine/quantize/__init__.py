"""Make a quantized checkpoint of a model, to see what it costs.

    python -m engine.quantize pocket --format gptq --out pocket-gptq
    glasshouse quantize smollm2 --format q4_0 --out smollm2-q4

`rounding.py` rounds each weight to the nearest code; `feedback.py` is GPTQ's own idea: what
rounding one input's weights did to the output is undone by the inputs that are not rounded yet.
Tools that calibrate do better: they see the right kind of text, and they move scales (AWQ) or
rounding itself (auto-round) to where it hurts the output least. Here the model writes its own text.
"""
