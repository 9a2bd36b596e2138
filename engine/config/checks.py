"""Check which values of an option are possible, alone and together. Each refusal says the limit."""

from __future__ import annotations

import re
import ssl
import sys

from engine.config.option_types import ConfigError, settled
from engine.config.options import FIELDS, KINDS, Options, flag_of
from engine.config.speculative import speculation
from engine.rank_sizes import MOST_RANKS
from engine.sampling_params import WHOLE_VOCABULARY

AT_LEAST_ONE = (
    "block_size", "max_num_seqs", "max_num_batched_tokens", "max_model_len",
    "num_gpu_blocks_override", "kv_cache_memory_bytes", "tensor_parallel_size",
    "max_num_queued_reqs", "trace_buffer", "stream_interval", "api_server_count",
)  # fmt: skip
AT_MOST = {
    "cpu_threads": 1024,  # torch and OpenMP crash on far more
    "api_server_count": 64,  # each is a whole process: with hundreds, memory ends before they start
    "tensor_parallel_size": MOST_RANKS,
    "max_num_seqs": 65_536,  # seats have tables of their own, made at the start
}
NOT_NEGATIVE = (
    "swap_space", "cpu_threads", "shutdown_timeout", "response_store_bytes", "response_store_ttl",
)  # fmt: skip


def settle_types(options: Options) -> None:
    """Convert each value to its one form (a text to a list, `half`). Raises `ConfigError`."""
    for name in FIELDS:
        setattr(options, name, settled(flag_of(name), getattr(options, name), KINDS[name]))


def check(options: Options) -> None:
    """Raise `ConfigError` for a value out of its range, or for two options that contradict each
    other."""
    for name in AT_LEAST_ONE:
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ConfigError(f"{flag_of(name)} is {value}; it must be at least 1.")
    for name in NOT_NEGATIVE:
        if getattr(options, name) < 0:
            raise ConfigError(f"{flag_of(name)} is {getattr(options, name)}; it can't be negative.")
    for name in FIELDS:
        _check_text(name, getattr(options, name))
    for name, most in AT_MOST.items():
        if getattr(options, name) > most:
            raise ConfigError(f"{flag_of(name)} is {getattr(options, name)}; at most {most:,}.")
    if not options.model:
        raise ConfigError("--model is empty: name a model, or leave it out for pocket.")
    if options.engine_timeout <= 0:
        raise ConfigError(
            f"--engine-timeout is {options.engine_timeout:g}; it must be more than 0 seconds."
        )
    if options.max_logprobs < WHOLE_VOCABULARY:
        raise ConfigError(
            f"--max-logprobs is {options.max_logprobs}; it must be -1 (no limit), 0 or more."
        )
    asked = speculation(options.speculative_config)
    if asked is not None and asked.method == "draft" and options.tensor_parallel_size > 1:
        raise ConfigError(
            f"--tensor-parallel-size is {options.tensor_parallel_size}, and --speculative-config"
            ' names a draft model, which is not divided in this version: propose by "ngram", or'
            " leave one of them out."
        )
    _check_memory(options)
    _check_machine(options)
    _check_quantized(options)
    _check_server(options)


def _check_text(name: str, value: object) -> None:
    for text in value if isinstance(value, list) else [value]:
        if isinstance(text, str) and not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError:  # Python's stand-ins for bytes that the locale doesn't know
                raise ConfigError(
                    f"{flag_of(name)} has bytes that are no text in this locale: set PYTHONUTF8=1,"
                    " or LC_ALL=C.UTF-8."  # without the value: it may be a secret
                ) from None


def _check_memory(options: Options) -> None:
    if options.block_size & (options.block_size - 1) or options.block_size > 256:
        raise ConfigError(
            f"--block-size is {options.block_size}; it must be a power of two up to 256."
        )
    if not 0.0 < options.gpu_memory_utilization <= 1.0:
        raise ConfigError(
            f"--gpu-memory-utilization is {options.gpu_memory_utilization}; it is a share: more"
            " than 0, at most 1."
        )
    if options.preemption_mode == "swap" and options.swap_space == 0:
        raise ConfigError(
            "--preemption-mode swap needs host memory: give --swap-space more than 0, or use"
            " recompute."
        )


def _check_machine(options: Options) -> None:
    if options.dtype == "float16" and options.device == "cpu":
        raise ConfigError("--dtype float16 is not computed on a CPU; use bfloat16 or float32.")


def _check_quantized(options: Options) -> None:
    if options.quantized_activations and options.device == "cuda":
        raise ConfigError(
            "--quantized-activations is for CPUs, and --device is cuda: leave one of them out."
        )
    if options.quantized_activations and options.quantization == "none":
        raise ConfigError(
            "--quantized-activations needs quantized weights, and --quantization none expands them:"
            " leave one of them out."
        )


def _check_server(options: Options) -> None:
    if not 0 <= options.port <= 65535:
        raise ConfigError(f"--port is {options.port}; it must be 0 to 65535.")
    if options.root_path and not re.fullmatch(r"(/[^/?#\s]+)+", options.root_path):
        raise ConfigError(
            f"--root-path is {options.root_path!r}; it must begin with / and not end with one, such"
            " as /api."
        )
    _check_https(options)
    if options.api_server_count > 1 and sys.platform != "linux":
        raise ConfigError(
            "--api-server-count above 1 needs Linux, whose kernel divides the connections of a port"
            " among several processes."
        )
    if options.api_server_count > 1 and options.uds:
        raise ConfigError(
            "--api-server-count above 1 can't be combined with --uds: the kernel divides"
            " connections only among sockets of one port."
        )
    for key in options.api_key:
        if not key.strip():
            raise ConfigError("--api-key is empty: anyone could pass. Leave it out, or give a key.")
        if key != key.strip() or not key.isprintable():  # the error doesn't show the key
            raise ConfigError(
                "--api-key begins or ends with a space, or has a control character: no client could"
                " send it in a header. Take these out."
            )
    if "" in options.served_model_name:
        raise ConfigError("--served-model-name has an empty name; leave it out, or give one.")


def _check_https(options: Options) -> None:
    if options.ssl_certfile is None:
        for name in ("ssl_keyfile", "ssl_ca_certs", "ssl_cert_reqs"):
            if getattr(options, name):
                raise ConfigError(f"{flag_of(name)} needs --ssl-certfile: HTTPS has a certificate.")
        return
    if options.ssl_cert_reqs not in (0, 1, 2):
        raise ConfigError(f"--ssl-cert-reqs is {options.ssl_cert_reqs}; it must be 0, 1 or 2.")
    if options.ssl_cert_reqs and options.ssl_ca_certs is None:
        raise ConfigError(
            "--ssl-cert-reqs needs --ssl-ca-certs: clients' certificates are checked against those."
        )
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(options.ssl_certfile, options.ssl_keyfile)
        if options.ssl_ca_certs is not None:
            context.load_verify_locations(options.ssl_ca_certs)
    except (OSError, ValueError) as error:  # ssl's own errors are OSErrors
        files = [options.ssl_certfile, options.ssl_keyfile, options.ssl_ca_certs]
        named = ", ".join(name for name in files if name)
        raise ConfigError(f"--ssl-certfile: {named} can't be used ({error}).") from None
