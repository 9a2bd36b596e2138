"""Name the terms of the glossary: question of the corpus, place in the code, paper, drawing.

A term's text is the answer that `pocket/corpus` gives to its question, or its own where the
embedded model was not taught it.
"""

from __future__ import annotations

from typing import NamedTuple


class Term(NamedTuple):
    """Hold one term. `place` is a file and a name in it; "" for what isn't in this engine."""

    name: str
    question: str  # "": `text` is given
    place: str = ""
    paper: str = ""  # a key of PAPERS
    drawing: str = ""  # a key of glossary.DRAWINGS
    text: str = ""


class Paper(NamedTuple):
    """Hold what a paper is cited by. `where` is an address, or the place of its printing."""

    title: str
    authors: str
    year: int
    where: str


def _arxiv(number: str) -> str:
    return f"https://arxiv.org/abs/{number}"


_EFFICIENT = "Efficiently Scaling Transformer Inference"
_NUCLEUS = "The Curious Case of Neural Text Degeneration"

PAPERS = {
    "attention": Paper("Attention Is All You Need", "Vaswani et al.", 2017, _arxiv("1706.03762")),
    "scaling": Paper(_EFFICIENT, "Pope et al.", 2022, _arxiv("2211.05102")),
    "paged": Paper(
        "Efficient Memory Management for Large Language Model Serving with PagedAttention",
        "Kwon et al.",
        2023,
        _arxiv("2309.06180"),
    ),
    "orca": Paper(
        "Orca: A Distributed Serving System for Transformer-Based Generative Models",
        "Yu et al.",
        2022,
        "OSDI 2022",
    ),
    "sarathi": Paper(
        "SARATHI: Efficient LLM Inference by Piggybacking Decodes with Chunked Prefills",
        "Agrawal et al.",
        2023,
        _arxiv("2308.16369"),
    ),
    "sarathi-serve": Paper(
        "Taming Throughput-Latency Tradeoff in LLM Inference with Sarathi-Serve",
        "Agrawal et al.",
        2024,
        _arxiv("2403.02310"),
    ),
    "sglang": Paper(
        "SGLang: Efficient Execution of Structured Language Model Programs",
        "Zheng et al.",
        2023,
        _arxiv("2312.07104"),
    ),
    "distserve": Paper(
        "DistServe: Disaggregating Prefill and Decoding for Goodput-optimized Large Language"
        " Model Serving",
        "Zhong et al.",
        2024,
        _arxiv("2401.09670"),
    ),
    "fastserve": Paper(
        "Fast Distributed Inference Serving for Large Language Models",
        "Wu et al.",
        2023,
        _arxiv("2305.05920"),
    ),
    "fairness": Paper(
        "Fairness in Serving Large Language Models", "Sheng et al.", 2024, _arxiv("2401.00588")
    ),
    "tail": Paper("The Tail at Scale", "Dean and Barroso", 2013, "Communications of the ACM 56(2)"),
    "little": Paper(
        "A Proof for the Queuing Formula: L = λW", "Little", 1961, "Operations Research 9(3)"
    ),
    "flash": Paper(
        "FlashAttention: Fast and Memory-Efficient Exact Attention with IO-Awareness",
        "Dao et al.",
        2022,
        _arxiv("2205.14135"),
    ),
    "online-softmax": Paper(
        "Online normalizer calculation for softmax",
        "Milakov and Gimelshein",
        2018,
        _arxiv("1805.02867"),
    ),
    "roofline": Paper(
        "Roofline: An Insightful Visual Performance Model for Multicore Architectures",
        "Williams, Waterman and Patterson",
        2009,
        "Communications of the ACM 52(4)",
    ),
    "triton": Paper(
        "Triton: An Intermediate Language and Compiler for Tiled Neural Network Computations",
        "Tillet, Kung and Cox",
        2019,
        "MAPL 2019",
    ),
    "bpe": Paper(
        "Neural Machine Translation of Rare Words with Subword Units",
        "Sennrich, Haddow and Birch",
        2015,
        _arxiv("1508.07909"),
    ),
    "rope": Paper(
        "RoFormer: Enhanced Transformer with Rotary Position Embedding",
        "Su et al.",
        2021,
        _arxiv("2104.09864"),
    ),
    "rmsnorm": Paper(
        "Root Mean Square Layer Normalization", "Zhang and Sennrich", 2019, _arxiv("1910.07467")
    ),
    "swiglu": Paper("GLU Variants Improve Transformer", "Shazeer", 2020, _arxiv("2002.05202")),
    "tied": Paper(
        "Using the Output Embedding to Improve Language Models",
        "Press and Wolf",
        2016,
        _arxiv("1608.05859"),
    ),
    "mqa": Paper(
        "Fast Transformer Decoding: One Write-Head is All You Need",
        "Shazeer",
        2019,
        _arxiv("1911.02150"),
    ),
    "gqa": Paper(
        "GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints",
        "Ainslie et al.",
        2023,
        _arxiv("2305.13245"),
    ),
    "mistral": Paper("Mistral 7B", "Jiang et al.", 2023, _arxiv("2310.06825")),
    "top-k": Paper(
        "Hierarchical Neural Story Generation", "Fan, Lewis and Dauphin", 2018, _arxiv("1805.04833")
    ),
    "top-p": Paper(_NUCLEUS, "Holtzman et al.", 2019, _arxiv("1904.09751")),
    "min-p": Paper(
        "Turning Up the Heat: Min-p Sampling for Creative and Coherent LLM Outputs",
        "Nguyen et al.",
        2024,
        _arxiv("2407.01082"),
    ),
    "ctrl": Paper(
        "CTRL: A Conditional Transformer Language Model for Controllable Generation",
        "Keskar et al.",
        2019,
        _arxiv("1909.05858"),
    ),
    "boltzmann": Paper(
        "A Learning Algorithm for Boltzmann Machines",
        "Ackley, Hinton and Sejnowski",
        1985,
        "Cognitive Science 9(1)",
    ),
    "philox": Paper(
        "Parallel Random Numbers: As Easy as 1, 2, 3", "Salmon et al.", 2011, "SC 2011"
    ),
    "gumbel": Paper("A* Sampling", "Maddison, Tarlow and Minka", 2014, _arxiv("1411.0030")),
    "outlines": Paper(
        "Efficient Guided Generation for Large Language Models",
        "Willard and Louf",
        2023,
        _arxiv("2307.09702"),
    ),
    "speculative": Paper(
        "Fast Inference from Transformers via Speculative Decoding",
        "Leviathan, Kalman and Matias",
        2022,
        _arxiv("2211.17192"),
    ),
    "splitwise": Paper(
        "Splitwise: Efficient Generative LLM Inference Using Phase Splitting",
        "Patel et al.",
        2023,
        _arxiv("2311.18677"),
    ),
    "gptq": Paper(
        "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
        "Frantar et al.",
        2022,
        _arxiv("2210.17323"),
    ),
    "awq": Paper(
        "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration",
        "Lin et al.",
        2023,
        _arxiv("2306.00978"),
    ),
    "fp8": Paper(
        "FP8 Formats for Deep Learning", "Micikevicius et al.", 2022, _arxiv("2209.05433")
    ),
    "lora": Paper(
        "LoRA: Low-Rank Adaptation of Large Language Models",
        "Hu et al.",
        2021,
        _arxiv("2106.09685"),
    ),
    "megatron": Paper(
        "Megatron-LM: Training Multi-Billion Parameter Language Models Using Model Parallelism",
        "Shoeybi et al.",
        2019,
        _arxiv("1909.08053"),
    ),
    "gpipe": Paper(
        "GPipe: Efficient Training of Giant Neural Networks using Pipeline Parallelism",
        "Huang et al.",
        2018,
        _arxiv("1811.06965"),
    ),
    "moe": Paper(
        "Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer",
        "Shazeer et al.",
        2017,
        _arxiv("1701.06538"),
    ),
}

_SCHEDULER = "engine/core/scheduler.py"
_POOL = "engine/core/block_pool.py"
_TABLES = "engine/core/kv_manager.py"

TERMS = (
    # -- a token's way
    Term("Token", "What is a token?", "engine/text/tokenizer.py Tokenizer", "bpe"),
    Term("Byte-pair encoding", "What is byte-pair encoding?", "", "bpe"),
    Term("Chat template", "What is a chat template?", "engine/text/chat_template.py"),
    Term("Detokenization", "What is incremental detokenization?", "engine/text/detokenizer.py"),
    Term("Context length", "What is the context length?", "engine/models/length.py"),
    Term("Logits", "What are logits?", "engine/worker/sampling/sampler.py logits"),
    Term("Prefill", "What is prefill?", _SCHEDULER, "scaling", "first-steps"),
    Term("Decode", "What is decode?", _SCHEDULER, "scaling", "first-steps"),
    Term("Step", "What is a step of the engine?", "engine/core/engine_core.py", "orca", "seats"),
    # -- memory
    Term("KV cache", "What is the KV cache?", "engine/worker/memory/kv_cache.py", "scaling"),
    Term("Paged attention", "What is PagedAttention?", _TABLES, "paged", "pool"),
    Term("Block", "What is a block?", _POOL, "paged", "pool"),
    Term("Block table", "What is a block table?", _TABLES, "paged", "pool"),
    Term("Slot mapping", "What is the slot mapping?", "engine/layers/slot.py", "paged"),
    Term("Free queue", "What is the free queue?", f"{_POOL} BlockPool", "paged"),
    Term("Reference count", "What is a reference count?", _POOL, "paged", "shared"),
    Term("Fragmentation", "What is fragmentation?", "", "paged"),
    Term("Copy-on-write", "What is copy-on-write?", _TABLES, "paged", "forked"),
    Term(
        "Parallel sampling", "How do several answers share one prompt?", _TABLES, "paged", "forked"
    ),
    Term("Prefix cache", "What is prefix caching?", _TABLES, "sglang", "shared"),
    Term("Block hash", "What is a block hash?", "engine/core/request.py block_hash", "sglang"),
    Term("Cache salt", "What is a cache salt?", "engine/core/kv_manager.py salt"),
    Term("Eviction", "What is eviction?", _POOL, "sglang", "kept"),
    # -- scheduling
    Term("Continuous batching", "What is continuous batching?", _SCHEDULER, "orca", "seats"),
    Term("Static batching", "What is static batching?", "", "orca"),
    Term("Scheduler", "What is a scheduler?", f"{_SCHEDULER} schedule", "orca"),
    Term("Token budget", "What is a token budget?", _SCHEDULER, "sarathi-serve", "chunks"),
    Term("Chunked prefill", "What is chunked prefill?", _SCHEDULER, "sarathi", "chunks"),
    Term("Seat", "What is a seat in the batch?", "engine/worker/seats.py", "", "seats"),
    Term("Admission", "What is admission?", "engine/core/admission.py", "orca", "seats"),
    Term("Preemption", "What is preemption?", f"{_SCHEDULER} preempt", "paged", "preempted"),
    Term(
        "Recomputation",
        "What is preemption by recompute?",
        "engine/core/preemption.py",
        "paged",
        "recomputed",
    ),
    Term(
        "Swapping", "What is preemption by swap?", "engine/core/preemption.py", "paged", "swapped"
    ),
    Term(
        "Rank", "Which request is preempted first?", "engine/core/request.py rank", "", "preempted"
    ),
    Term(
        "Head-of-line blocking",
        "What is head-of-line blocking?",
        "engine/core/waiting_queue.py",
        "fastserve",
        "seats",
    ),
    Term("Fairness", "What is fairness in scheduling?", "", "fairness"),
    Term("Overlapped loop", "What is an overlapped loop?", "engine/worker/in_flight.py"),
    Term("Disaggregation", "What is disaggregated prefill?", "", "splitwise"),
    # -- sampling
    Term("Sampling", "What is sampling?", "engine/worker/sampling/sampler.py"),
    Term("Greedy decoding", "What is greedy decoding?", "engine/worker/sampling/sampler.py"),
    Term(
        "Temperature",
        "What is temperature?",
        "engine/worker/sampling/sampling_table.py",
        "boltzmann",
    ),
    Term("Top-k", "What is top-k sampling?", "engine/worker/sampling/exact_draw.py", "top-k"),
    Term("Top-p", "What is top-p sampling?", "engine/worker/sampling/exact_draw.py", "top-p"),
    Term("Min-p", "What is min-p sampling?", "engine/worker/sampling/exact_draw.py", "min-p"),
    Term(
        "Repetition penalty",
        "What is the repetition penalty?",
        "engine/worker/sampling/penalties.py",
        "ctrl",
    ),
    Term("Seed", "What is a seed?", "engine/worker/sampling/philox.py"),
    Term("Philox", "What is Philox?", "engine/worker/sampling/philox.py", "philox"),
    Term("Gumbel trick", "What is the Gumbel trick?", "", "gumbel"),
    Term("Structured output", "What is structured output?", "", "outlines"),
    Term("Finish reason", "What is finish_reason?", "engine/text/stop.py"),
    # -- the model
    Term("Attention", "What is attention?", "engine/layers/attention.py", "attention"),
    Term(
        "Grouped-query attention",
        "What is grouped-query attention?",
        "engine/layers/attention.py",
        "gqa",
    ),
    Term("Multi-query attention", "What is multi-query attention?", "", "mqa"),
    Term(
        "Sliding window", "What is sliding window attention?", "engine/kernels/batch.py", "mistral"
    ),
    Term("RoPE", "What is RoPE?", "engine/layers/rotary.py", "rope"),
    Term("RMSNorm", "What is RMSNorm?", "engine/layers/norm.py RMSNorm", "rmsnorm"),
    Term("SwiGLU", "What is SwiGLU?", "engine/layers/activation.py", "swiglu"),
    Term("Tied embeddings", "What are tied embeddings?", "engine/layers/embedding.py", "tied"),
    Term("Mixture of experts", "What is a mixture of experts?", "", "moe"),
    Term("LoRA", "What is LoRA?", "", "lora"),
    # -- kernels and speed
    Term(
        "FlashAttention", "What is FlashAttention?", "engine/kernels/triton/attention.py", "flash"
    ),
    Term(
        "Online softmax",
        "What is the online softmax?",
        "engine/kernels/triton/attention.py",
        "online-softmax",
    ),
    Term("Split-KV", "What is split-KV decoding?", "engine/kernels/triton/paged_attention.py"),
    Term("Triton", "What is Triton?", "engine/kernels/triton/start.py", "triton"),
    Term("CUDA graph", "What is a CUDA graph?", "engine/worker/graphs/cuda_graphs.py"),
    Term("Roofline", "What is the roofline model?", "engine/kernels/machine_limits.py", "roofline"),
    Term(
        "Arithmetic intensity",
        "What is arithmetic intensity?",
        "engine/kernels/cost.py Cost",
        "roofline",
    ),
    Term("Quantization", "What is quantization?", "engine/kernels/quantized_weight.py", "gptq"),
    Term("AWQ", "What is AWQ?", "engine/models/formats/awq.py", "awq"),
    Term("FP8", "What is FP8?", "engine/fp8_formats.py", "fp8"),
    Term(
        "Speculative decoding",
        "What is speculative decoding?",
        "engine/core/verification.py",
        "speculative",
        "proposed",
    ),
    Term("Draft model", "What is a draft model?", "engine/worker/drafter.py Drafter"),
    Term(
        "Prompt look-up",
        "",
        "engine/core/proposer.py NgramProposer",
        text="Prompt look-up proposes tokens without a second model: it finds where the last few"
        " tokens of a sequence stood before, and takes what followed there. It gains most where an"
        " answer repeats its prompt, as summaries and edits of code do.",
    ),
    Term(
        "Acceptance rate",
        "",
        "engine/core/speculator.py Hits",
        "speculative",
        text="The acceptance rate is the share of proposed tokens that turn out right. If each is"
        " right with probability q, k of them give q + q² + … + qᵏ tokens more for one step, so a"
        " few good proposals are worth more than many doubtful ones.",
    ),
    Term(
        "Tensor parallelism",
        "What is tensor parallelism?",
        "engine/layers/rank_shares.py",
        "megatron",
    ),
    Term("Pipeline parallelism", "What is pipeline parallelism?", "", "gpipe"),
    # -- measuring
    Term(
        "Time to first token",
        "What is TTFT?",
        "engine/server/telemetry/metrics.py",
        "distserve",
        "first-steps",
    ),
    Term(
        "Time per output token", "What is TPOT?", "engine/server/telemetry/metrics.py", "distserve"
    ),
    Term("Throughput", "What is throughput?", "", "sarathi-serve"),
    Term("Goodput", "What is goodput?", "", "distserve"),
    Term("Tail latency", "What is tail latency?", "", "tail"),
    Term("Little's law", "What is Little's law?", "", "little"),
    Term("Trace event", "What is a trace event?", "engine/trace/events.py"),
)
