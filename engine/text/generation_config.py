"""Read what a model's makers recommend: the tokens that end a text, and sampling defaults.

They are in generation_config.json. If that is missing, or names no end of sequence, they are read
from config.json, of which transformers makes the same (`GenerationConfig.from_model_config`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from engine.one_line import one_line
from engine.sampling_params import ParameterError, SamplingParams
from engine.text.errors import TextError

FILE = "generation_config.json"
FIELDS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
}
"""Fields that are used: transformers' name → ours. As in vLLM, `do_sample` is not among them."""


class GenerationDefaults(msgspec.Struct, frozen=True):
    """Hold the recommendations of a model's makers that the engine uses."""

    eos_token_ids: list[int] = []
    sampling: dict[str, Any] = {}  # of SamplingParams, where a request sets nothing itself
    origin: str = ""  # where `sampling` comes from, for people

    def params(self) -> SamplingParams:
        """Return sampling parameters with these defaults."""
        return SamplingParams(**self.sampling)

    def in_words(self) -> str:
        """Describe the defaults in one line for the log; "" without defaults."""
        if not self.sampling:
            return ""
        values = ", ".join(f"{name} {value}" for name, value in self.sampling.items())
        return f"Sampling defaults of {self.origin}: {values}; what a request says itself wins."


def read_defaults(
    model: str,
    revision: str | None = None,
    hf_token: str | None = None,
    wanted: str = "auto",
    override: Mapping[str, Any] | None = None,
    cache: str | None = None,
) -> GenerationDefaults:
    """Read the defaults of `model`, a local folder or a hub id.

    wanted: `--generation-config`: "auto", the model's own; "vllm": no sampling defaults but ours;
    else a folder with a generation_config.json. override: `--override-generation-config`, which
    wins over the file. cache: the folder of downloads, in place of the hub's own. Raises
    `TextError` for a file or a value that can't be used.
    """
    own = _OwnConfigs(model, revision, hf_token, cache)
    config, origin = own.generation, FILE if own.has_file else "config.json"
    if wanted not in ("auto", "vllm"):
        config, origin = _of_folder(wanted), str(Path(wanted) / FILE)
    eos = _ids(config, origin) or _ids(own.of_model, "config.json")
    sampling: dict[str, Any] = {}
    if wanted != "vllm":
        sampling = _checked({name: getattr(config, name, None) for name in FIELDS}, origin)
    if override:
        _refuse_unknown(override)
        flag = "--override-generation-config"
        origin = f"{origin} and {flag}" if sampling else flag
        sampling |= _checked(override, flag)
    return GenerationDefaults(eos, sampling, origin if sampling else "")


class _OwnConfigs:
    """Hold the two files of a model as transformers reads them; None for a missing one."""

    def __init__(
        self, model: str, revision: str | None, hf_token: str | None, cache: str | None = None
    ):
        from transformers import AutoConfig, GenerationConfig  # takes a second to import

        folder = Path(model).expanduser()
        source = str(folder) if folder.is_dir() else model
        where: dict[str, Any] = {
            "revision": revision or "main",
            "token": hf_token,
            "cache_dir": cache,
        }
        self.generation: Any = None
        self.of_model: Any = None
        self.has_file = True
        try:
            self.generation = GenerationConfig.from_pretrained(source, **where)
        except Exception as error:
            if (folder / FILE).is_file():  # of a hub's model, both cases read alike
                raise _unreadable(str(folder / FILE), error) from None
            self.has_file = False
        try:
            config = AutoConfig.from_pretrained(source, trust_remote_code=False, **where)
            self.of_model = GenerationConfig.from_model_config(config)
        except Exception:  # the model's loader reports what is wrong with config.json
            return
        if not self.has_file:
            self.generation = self.of_model


def _of_folder(name: str) -> Any:
    from transformers import GenerationConfig

    folder = Path(name).expanduser()
    if not (folder / FILE).is_file():
        raise TextError(
            "generation_config",
            f"--generation-config is {name!r}: neither auto nor vllm nor a folder with a {FILE}.",
        )
    try:
        return GenerationConfig.from_pretrained(str(folder))
    except Exception as error:
        raise _unreadable(str(folder / FILE), error) from None


def _unreadable(file: str, error: Exception) -> TextError:
    reason = one_line(error)
    return TextError(
        "generation_config",
        f"{file} can't be used: {reason}. Mend it, or use --generation-config with another folder.",
    )


def _refuse_unknown(values: Mapping[str, Any]) -> None:
    unknown = sorted(values.keys() - FIELDS.keys())
    if unknown:
        raise TextError(
            "override_generation_config",
            f"--override-generation-config names {', '.join(unknown)}; it may set"
            f" {', '.join(FIELDS)}.",
        )


def _checked(values: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """Return the values under our names, without None values. Raises `TextError`."""
    found = {FIELDS[name]: value for name, value in values.items() if value is not None}
    try:
        SamplingParams(**found)
    except ParameterError as error:
        raise TextError(
            "generation_config",
            f"{origin} has a default that can't be used: {error} --override-generation-config can"
            " set another, --generation-config vllm leaves them all out.",
        ) from None
    return found


def _ids(config: Any, origin: str) -> list[int]:
    """Return the tokens that end a text: one, a list, or none (also written −1). Raises
    `TextError`."""
    found = getattr(config, "eos_token_id", None)
    many = found if isinstance(found, list | tuple) else [] if found is None else [found]
    if not all(type(one) is int for one in many):
        raise TextError(
            "generation_config",
            f"{origin} has the eos_token_id {found!r:.80}; give a token id or a list of them.",
        )
    return [one for one in many if one >= 0]
