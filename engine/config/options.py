"""Declare every option: its name, type, default, help, and environment variable.

Each field below becomes a Python argument (`EngineConfig(max_num_seqs=8)`, `LLM(model,
max_num_seqs=8)`), a flag (`--max-num-seqs 8`), a key of a `--config` file (`max-num-seqs: 8`), an
environment variable (`MAX_NUM_SEQS=8`) and a row of the table in the docs. Flags have vLLM's names.
"""

# ruff: noqa: RUF009 - `_option` returns a dataclass field
from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_type_hints

from engine.config.option_types import kind_of
from engine.sampling_params import MAX_LOGPROBS

POCKET_MODEL = str(Path(__file__).resolve().parents[2] / "pocket" / "model")
"""The embedded model: used when no model is named."""


def cache_folder() -> Path:
    """Return this user's folder for files that the engine makes once and keeps."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "glasshouse"


LOOPBACK = "127.0.0.1"


BUDGET = 2048
CUDA_BUDGET = 4096  # steps with prompts launch hundreds of kernels: fewer, larger steps


def _option(
    default: Any, help: str, env: str | None = None, secret: bool = False, short: str = ""
) -> Any:
    """Declare an option: its default, help text, environment variable and short flag.

    `list` or `dict` as a default: an empty one. The variable is by default the name in capitals.
    """
    metadata = {"help": help, "env": env, "secret": secret, "short": short}
    if default in (list, dict):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass
class Options:
    """Hold every option of the engine and its server. Checks are in `checks.py`."""

    # -- the model
    model: str = _option(
        POCKET_MODEL,
        "pocket, smollm2, a local folder or a Hugging Face id; default: pocket, the embedded one",
        env="MODEL_NAME",
    )
    served_model_name: list[str] = _option(
        list,
        "names that clients may use, the first one in answers; default: --model, of a folder the"
        " last part",
    )
    tokenizer: str | None = _option(
        None, "local folder or Hugging Face id of the tokenizer; default: the model's own"
    )
    revision: str | None = _option(None, "branch, tag or commit on the hub")
    download_dir: str | None = _option(
        None, "folder for what the hub sends; default: the hub's own cache (HF_HOME)"
    )
    hf_token: str | None = _option(
        None, "token for gated models on the hub", env="HF_TOKEN", secret=True
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = _option(
        "auto",
        "weights and activations; auto: as the checkpoint is stored (on a CPU, float16 becomes"
        " bfloat16)",
    )
    quantization: (
        Literal[
            "none",
            "awq",
            "awq_marlin",
            "bitsandbytes",
            "compressed-tensors",
            "fbgemm_fp8",
            "modelopt",
            "fp8",
            "gguf",
            "gptq",
            "gptq_marlin",
            "gptq_v2",
            "mxfp4",
            "squeezellm",
        ]
        | None
    ) = _option(
        None,
        "format of a quantized checkpoint; none: expand its weights to --dtype when loading; any"
        " other must be what is found; default: as found",
        short="-q",
    )
    quantized_activations: bool = _option(
        False,
        "on a CPU, round activations to 8 bits where they are multiplied by quantized weights of 4"
        " or 8 bits: faster, and some of the drawn tokens change",
    )
    load_format: Literal["auto", "dummy"] = _option(
        "auto", "dummy: random weights in the model's shape, for benchmarks"
    )
    max_model_len: int | None = _option(
        None,
        "longest sequence in tokens, prompt and output; auto: the model's own, or what the KV cache"
        " holds",
    )
    chat_template: str | None = _option(
        None, "Jinja chat template (a file or the text itself); default: the model's own"
    )
    trust_request_chat_template: bool = _option(
        False, "run the chat templates that requests bring; they are programs"
    )
    generation_config: str = _option(
        "auto",
        "sampling defaults: auto: of the model's generation_config.json; vllm: none but ours; or a"
        " folder with such a file",
    )
    override_generation_config: dict[str, Any] = _option(
        dict, "sampling defaults that win over those of generation_config.json"
    )
    default_chat_template_kwargs: dict[str, Any] = _option(
        dict, "variables of the chat template; those of a request win over them"
    )
    tool_call_parser: str = _option(
        "auto",
        "how the model writes calls of tools; auto: as its chat template does; none: as text",
    )
    reasoning_parser: str = _option(
        "auto",
        "how the model writes its reasoning; auto: as its chat template does; none: it is content",
    )
    seed: int = _option(0, "seeds the requests that bring no seed of their own")

    # -- the machine
    device: Literal["auto", "cpu", "cuda"] = _option("auto", "auto: CUDA when there is one")
    cpu_threads: int = _option(
        0,
        "threads of the worker on a CPU, in all its processes; 0: as many as physical cores",
    )
    tensor_parallel_size: int = _option(
        1,
        "processes that share each layer, on CUDA each with a GPU: 1 to 8",
        short="-tp",
    )
    enforce_eager: bool = _option(
        False, "launch every kernel from Python: no CUDA graphs, no tapes on a CPU"
    )
    async_scheduling: bool | None = _option(
        None, "overlapped loop: plan the next step while this one computes; default: on CUDA only"
    )
    batch_invariant: bool = _option(
        False,
        "the same tokens whatever shares a request's steps; on a CPU they are anyway, on CUDA this"
        " computes with slower kernels",
    )

    # -- memory for the KV cache
    block_size: int = _option(16, "tokens in a KV block")
    gpu_memory_utilization: float = _option(
        0.9, "share of the device's memory that the engine may fill"
    )
    kv_cache_memory_bytes: int | None = _option(
        None, "size of the KV cache; overrides the share above"
    )
    kv_cache_dtype: Literal["auto", "fp8", "fp8_e4m3", "fp8_e5m2"] = _option(
        "auto",
        "how keys and values are kept; auto: in the model's dtype; fp8 (which is fp8_e4m3): in 8"
        " bits, twice the tokens of bfloat16 in the same memory, less exact",
    )
    num_gpu_blocks_override: int | None = _option(None, "number of KV blocks; overrides both")
    swap_space: float = _option(1.0, "GiB of host memory for swapped-out blocks")
    enable_prefix_caching: bool = _option(True, "reuse the blocks of equal prompt beginnings")

    # -- scheduling
    max_num_seqs: int = _option(256, "sequences that run at once (seats)")
    max_num_batched_tokens: int | None = _option(
        None, f"tokens computed in one step (budget); default: {BUDGET:,}, on CUDA {CUDA_BUDGET:,}"
    )
    scheduling_policy: Literal["fcfs", "priority"] = _option(
        "fcfs", "first come first served, or by each request's priority"
    )
    scheduler_cls: str | None = _option(
        None,
        "a scheduler of your own, MODULE:CLASS (docs/EXERCISES.md); MODULE is imported from the"
        " current folder",
    )
    speculative_config: dict[str, Any] = _option(
        dict,
        "propose tokens and let one step check several; the text stays the same. JSON:"
        ' {"method": "ngram", "num_speculative_tokens": 15, "prompt_lookup_min": 1,'
        ' "prompt_lookup_max": 16}, or {"method": "draft", "model": "a smaller one",'
        ' "num_speculative_tokens": 4}',
    )
    preemption_mode: Literal["recompute", "swap", "auto"] = _option(
        "auto",
        "how a preempted request's K/V come back; auto: what is cheaper, as measured here",
    )
    max_num_queued_reqs: int = _option(1024, "waiting requests before the server answers 503")
    response_store_bytes: int = _option(
        64 * 2**20, "bytes of answers of /v1/responses that are kept to go on from; 0: none"
    )
    response_store_ttl: float = _option(3600.0, "seconds for which each of them is kept")
    max_logprobs: int = _option(
        MAX_LOGPROBS, "log-probabilities that a request may have beside each token; -1: no limit"
    )

    # -- the server
    host: str = _option("0.0.0.0", "address to listen on")
    port: int = _option(8000, "port to listen on; 0: any free one")
    uds: str | None = _option(None, "listen on this Unix socket in place of --host and --port")
    root_path: str = _option("", "path under which a proxy shows the server, such as /api")
    ssl_keyfile: str | None = _option(None, "private key for HTTPS (PEM)")
    ssl_certfile: str | None = _option(None, "certificate for HTTPS (PEM), with its chain")
    ssl_ca_certs: str | None = _option(None, "certificates (PEM) that clients' own may come from")
    ssl_cert_reqs: int = _option(
        0, "certificates of clients: 0 not asked for, 1 checked if sent, 2 required"
    )
    allowed_origins: list[str] = _option(
        list,
        "web sites whose pages may call the server (CORS), `*`: all; default: none but its own",
    )
    allowed_methods: list[str] = _option(list, "methods that they may use; default: all")
    allowed_headers: list[str] = _option(list, "headers that they may send; default: all")
    allow_credentials: bool = _option(False, "whether they may send cookies")
    api_key: list[str] = _option(
        list, "keys, of which clients must send one as a bearer token", secret=True
    )
    api_server_count: int = _option(
        1, "processes that answer HTTP on one port, before the one engine process", short="-asc"
    )
    stream_interval: int = _option(
        1, "tokens of a choice that a stream sends together; the first and the last go at once"
    )
    classroom: bool = _option(
        False,
        "let phones ask at /class, and vote on a lesson's prediction, with a code that the live"
        " page shows (at most 60 names)",
    )
    shutdown_timeout: float = _option(
        25.0, "seconds that running requests get to finish after SIGTERM"
    )
    engine_timeout: float = _option(
        60.0,
        "seconds in which the engine computes and sends nothing though it has work, after which it"
        " counts as hung and the server ends; ten times as long if it computes",
    )

    # -- the record
    trace: Literal["off", "steps", "full", "profile"] = _option(
        "steps", "what is recorded; full: tokens and kernels, too; profile: with each kernel's time"
    )
    trace_file: str | None = _option(None, "write the record to this JSONL file")
    trace_text: Literal["on", "off"] = _option(
        "on", "off: the record carries no text and no token ids of people"
    )
    trace_buffer: int = _option(200_000, "events kept in memory for /trace")
    log_format: Literal["auto", "rich", "json", "off"] = _option(
        "auto", "annotated record on the console; auto: rich on a terminal, JSON lines elsewhere"
    )


FIELDS = {field.name: field for field in dataclasses.fields(Options)}
KINDS = {name: kind_of(hint) for name, hint in get_type_hints(Options).items()}


def flag_of(name: str) -> str:
    """Return the flag of an option."""
    return "--" + name.replace("_", "-")


def env_name(name: str) -> str:
    """Return the environment variable of an option."""
    return FIELDS[name].metadata["env"] or name.upper()


def default_text(name: str) -> str:
    """Return the default of an option as the help and the docs show it; "" if it has none."""
    default = FIELDS[name].default
    hidden = default in (None, "", POCKET_MODEL) or default is dataclasses.MISSING
    return "" if hidden else str(default)
