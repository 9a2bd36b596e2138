"""EngineConfig: the one declaration of every option.

Each field below becomes a Python argument (`EngineConfig(max_num_seqs=8)`, `LLM(model,
max_num_seqs=8)`), a command-line flag (`--max-num-seqs 8`), an environment variable
(`MAX_NUM_SEQS=8`) and a row of the table in the docs (`python -m engine.config`). A flag wins over
the environment, the environment over the default. Flags carry vLLM's names.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

POCKET_MODEL = str(Path(__file__).resolve().parent.parent / "pocket" / "model")
"""The embedded model: used when no model is named."""

LOOPBACK = "127.0.0.1"


class ConfigError(ValueError):
    """An option has an impossible value, or two options contradict each other."""


BUDGET = 2048
CUDA_BUDGET = 4096  # a step with prompts launches some hundred kernels: fewer and larger ones


def _option(default: Any, help: str, env: str | None = None, secret: bool = False) -> Any:
    """One option: its default, its help text, and its environment variable (by default its name in
    capitals).
    """
    return dataclasses.field(default=default, metadata={"help": help, "env": env, "secret": secret})


@dataclass
class EngineConfig:
    """All options of the engine and its server. Raises `ConfigError` for impossible ones."""

    # -- the model
    model: str = _option(
        POCKET_MODEL,
        "local folder or Hugging Face id; default: the embedded pocket model",
        env="MODEL_NAME",
    )
    served_model_name: str = _option("", "name that clients use; default: the last part of --model")
    revision: str | None = _option(None, "branch, tag or commit on the hub")
    hf_token: str | None = _option(
        None, "token for gated models on the hub", env="HF_TOKEN", secret=True
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = _option(
        "auto",
        "weights and activations; auto: as the checkpoint is stored (on a CPU, float16 becomes"
        " bfloat16)",
    )
    quantization: Literal["awq", "gptq", "squeezellm", "compressed-tensors", "fp8"] | None = (
        _option(None, "format of a quantized checkpoint; default: as its config.json says")
    )
    load_format: Literal["auto", "dummy"] = _option(
        "auto", "dummy: random weights in the model's shape, for benchmarks"
    )
    max_model_len: int | None = _option(
        None, "longest sequence in tokens, prompt and output; default: the model's own"
    )
    chat_template: str | None = _option(
        None, "Jinja chat template (a file or the text itself); default: the model's own"
    )
    seed: int = _option(0, "seeds the requests that bring no seed of their own")

    # -- the machine
    device: Literal["auto", "cpu", "cuda"] = _option("auto", "auto: CUDA when there is one")
    cpu_threads: int = _option(0, "threads of the worker on a CPU; 0: as many as physical cores")
    tensor_parallel_size: int = _option(1, "GPUs that share each layer: 1 in this version")
    enforce_eager: bool = _option(
        False, "launch every kernel from Python: no CUDA graphs, no tapes on a CPU"
    )
    async_scheduling: bool | None = _option(
        None, "overlapped loop: plan the next step while this one computes; default: on CUDA only"
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
    preemption_mode: Literal["recompute", "swap", "auto"] = _option(
        "auto",
        "how a preempted request's K/V come back; auto: what is cheaper, as measured here",
    )
    max_num_queued_reqs: int = _option(1024, "waiting requests before the server answers 503")

    # -- the server
    host: str = _option("0.0.0.0", "address to listen on")
    port: int = _option(8000, "port to listen on; 0: any free one")
    api_key: str | None = _option(None, "clients must send it as a bearer token", secret=True)
    shutdown_timeout: float = _option(
        25.0, "seconds that running requests get to finish after SIGTERM"
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

    def __post_init__(self) -> None:
        for option in dataclasses.fields(self):
            self._check_type(option.name, getattr(self, option.name))
        self._check_ranges()
        if not self.served_model_name:
            path = Path(self.model)
            self.served_model_name = (
                "pocket"
                if self.model == POCKET_MODEL
                else (path.name if path.is_dir() else self.model)
            )

    def _check_type(self, name: str, value: Any) -> None:
        base, choices, optional = _shape(_hints()[name])
        if value is None and optional:
            return
        if choices and value not in choices:
            raise ConfigError(f"{_flag(name)} is {value!r}; choose one of {', '.join(choices)}.")
        if base is float and isinstance(value, int):
            return
        if not isinstance(value, base) or (base is int and isinstance(value, bool)):
            raise ConfigError(f"{_flag(name)} is {value!r}; it must be of type {base.__name__}.")

    def _check_ranges(self) -> None:
        at_least_one = (
            "block_size max_num_seqs max_num_batched_tokens max_model_len"
            " num_gpu_blocks_override kv_cache_memory_bytes"
            " tensor_parallel_size max_num_queued_reqs trace_buffer"
        )
        for name in at_least_one.split():
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{_flag(name)} is {value}; it must be at least 1.")
        if self.block_size & (self.block_size - 1) or self.block_size > 256:
            raise ConfigError(
                f"--block-size is {self.block_size}; it must be a power of two up to 256."
            )
        if not 0.0 < self.gpu_memory_utilization <= 1.0:
            raise ConfigError(
                f"--gpu-memory-utilization is {self.gpu_memory_utilization}; it is a share: more"
                " than 0, at most 1."
            )
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"--port is {self.port}; it must be 0 to 65535.")
        for name in ("swap_space", "cpu_threads", "shutdown_timeout"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{_flag(name)} is {getattr(self, name)}; it can't be negative.")
        if self.preemption_mode == "swap" and self.swap_space == 0:
            raise ConfigError(
                "--preemption-mode swap needs host memory: give --swap-space more than 0, or use"
                " recompute."
            )
        if self.tensor_parallel_size > 1:
            raise ConfigError(
                f"--tensor-parallel-size is {self.tensor_parallel_size}; this version uses one GPU,"
                " so it must be 1. Take a GPU that holds the model (python -m engine.fit MODEL)."
            )
        if self.dtype == "float16" and self.device == "cpu":
            raise ConfigError("--dtype float16 is not computed on a CPU; use bfloat16 or float32.")
        if self.api_key == "":
            raise ConfigError("--api-key is empty: anyone could pass. Leave it out, or give a key.")

    def public(self) -> dict[str, Any]:
        """All options by name, secrets replaced by "***": safe to log, to record and to show."""
        return {
            option.name: "***"
            if option.metadata["secret"] and getattr(self, option.name)
            else getattr(self, option.name)
            for option in dataclasses.fields(self)
        }

    @classmethod
    def from_args(
        cls,
        argv: Sequence[str] | None = None,
        environ: Mapping[str, str] | None = None,
        prog: str | None = None,
    ) -> EngineConfig:
        """Read flags, then the environment. Raises `ConfigError`; `--help` prints the options and
        exits.
        """
        environ = os.environ if environ is None else environ
        values = dict(_from_environment(environ))
        values.update(vars(_parser(prog).parse_args(argv)))
        return cls(**values)


# ----------------------------------------------------------- from the declaration to its four forms


def _hints() -> dict[str, Any]:
    return typing.get_type_hints(EngineConfig)


def _shape(hint: Any) -> tuple[type, tuple[str, ...], bool]:
    """(base type, choices, may be None) of a field's annotation."""
    optional = False
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        parts = [part for part in typing.get_args(hint) if part is not type(None)]
        optional, hint = True, parts[0]
    if typing.get_origin(hint) is Literal:
        return str, typing.get_args(hint), optional
    return hint, (), optional


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _env_name(option: dataclasses.Field) -> str:
    return option.metadata["env"] or option.name.upper()


def _convert(name: str, text: str, base: type) -> Any:
    if base is bool:
        if text.lower() in ("1", "true", "yes", "on"):
            return True
        if text.lower() in ("0", "false", "no", "off"):
            return False
        raise ConfigError(f"{name} is {text!r}; write 1 or 0.")
    try:
        return base(text)
    except ValueError:
        raise ConfigError(f"{name} is {text!r}; it must be of type {base.__name__}.") from None


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    values = {}
    for option in dataclasses.fields(EngineConfig):
        text = environ.get(_env_name(option))
        if text:  # an empty variable counts as unset
            values[option.name] = _convert(
                _env_name(option), text, _shape(_hints()[option.name])[0]
            )
    return values


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        raise ConfigError(f"{message}. --help lists every option.")


def _parser(prog: str | None) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=prog,
        description="Glasshouse: an LLM serving engine you can see through.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    for option in dataclasses.fields(EngineConfig):
        base, choices, _ = _shape(_hints()[option.name])
        default = "" if option.default in (None, "", POCKET_MODEL) else f" [{option.default}]"
        text = f"{option.metadata['help']}{default} (env {_env_name(option)})".replace("%", "%%")
        flag = _flag(option.name)
        if base is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, help=text)
        else:
            parser.add_argument(
                flag,
                type=base,
                choices=choices or None,
                metavar=None if choices else base.__name__,
                help=text,
            )
    return parser


def options_table() -> str:
    """Every option as a Markdown table, for the docs."""
    lines = ["| flag | environment | default | what it does |", "|---|---|---|---|"]
    for option in dataclasses.fields(EngineConfig):
        base, _, _ = _shape(_hints()[option.name])
        flag = _flag(option.name)
        flags = f"`{flag}`, `--no-{flag[2:]}`" if base is bool else f"`{flag}`"
        default = "" if option.default in (None, "", POCKET_MODEL) else f"`{option.default}`"
        lines.append(f"| {flags} | `{_env_name(option)}` | {default} | {option.metadata['help']} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(options_table() + "\n")
