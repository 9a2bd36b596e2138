"""Compute one model in several processes, which hold a share of each layer (tensor parallel).

Rank 0 is the process that has the core, the rows and the sampler. It tells the others what to
compute (`other_ranks.py`), and they do it on their shares of the weights and of the KV cache
(`rank_process.py`). The core knows nothing of them: blocks have the same numbers on every rank.
"""
