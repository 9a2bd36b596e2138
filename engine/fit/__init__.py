"""Show which GPU fits a model: weights + KV cache, the arithmetic line by line.

    python -m engine.fit meta-llama/Llama-3.1-8B --max-model-len 8192 --concurrency 4

Works from config.json alone, of a local folder or of a model on the hub; for well-known models from
a table of their public shapes, without a network. Nothing is loaded and no GPU is needed. The list
of GPUs is Koyeb's; what the engine really finds on one is in its `engine.kv_sized` event.
"""
