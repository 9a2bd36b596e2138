"""Read config.json as transformers reads it: its names, its defaults, its older forms.

What a native model needs is asked for once (`asking.py`), in place of importing transformers.
Whatever else the model may be, the configuration is transformers' own object.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from engine.models.asking import ask
from engine.models.errors import ModelError
from engine.models.registry import NATIVE
from engine.models.sizes import wrong_size
from engine.one_line import one_line

if TYPE_CHECKING:
    from transformers import PretrainedConfig

QUESTION = "engine.models.description:describe"


class Description(SimpleNamespace):
    """Hold the attributes of transformers' configuration, for a model with nothing but text."""

    def get_text_config(self) -> Description:
        return self


def read_config(folder: Path) -> PretrainedConfig:
    """Read the model's config.json: transformers' object or, for a native model, its attributes.

    Raises `ModelError`.
    """
    folder = folder.resolve()
    file = folder / "config.json"
    if not file.is_file():
        raise ModelError(f"{folder} has no config.json; name a folder in transformers' format.")
    try:
        said = ask(QUESTION, {"folder": str(folder)}, [file]).values
    except Exception as error:
        raise _unusable(file, one_line(error)) from None
    if "error" in said:
        raise _unusable(file, said["error"])
    if said["plain"] is None:
        description = transformers_config(folder)
    else:
        description = cast("PretrainedConfig", Description(**said["plain"]))
    text = description.get_text_config()
    wrong = wrong_size(lambda name: getattr(text, name, None))
    if wrong:
        raise ModelError(f"{folder}/config.json says {wrong}.")
    return description


def transformers_config(folder: Path) -> PretrainedConfig:
    """Read the configuration of a folder as transformers' own object. Raises `ModelError`."""
    from transformers import AutoConfig  # takes a second to import

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # of many kinds: unknown model type, remote code, bad JSON, …
        reason = one_line(error)
        raise _unusable(folder / "config.json", reason) from None


def describe(arguments: dict[str, Any]) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Answer `QUESTION`: {"plain": the attributes} or {"error": why there are none}.

    The attributes are None where transformers has to compute with the configuration itself.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(arguments["folder"], trust_remote_code=False)
    except Exception as error:
        return {"error": one_line(error)}, {}
    native = (config.architectures or [None])[0] in NATIVE
    rope = getattr(config, "rope_parameters", None) or {"rope_type": "default"}
    if not native or rope.get("rope_type") != "default" or config.get_text_config() is not config:
        return {"plain": None}, {}
    values = {**vars(config), "model_type": config.model_type}
    if values.get("dtype") is not None:
        values["dtype"] = str(values["dtype"]).removeprefix("torch.")
    return {"plain": {name: value for name, value in values.items() if _is_json(value)}}, {}


def _is_json(value: Any) -> bool:
    """Return whether JSON holds a value unchanged."""
    try:
        return bool(json.loads(json.dumps(value)) == value)
    except (TypeError, ValueError):
        return False


def _unusable(file: Path, reason: str) -> ModelError:
    return ModelError(f"{file} can't be used: {reason}")
