"""Read config.json: of a folder, a GGUF file, a well-known model, or one on the hub."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from engine.config import POCKET_MODEL
from engine.fit.known import known_config
from engine.fit.quantized_bytes import of_file
from engine.fit.shape import PlanError
from engine.models.errors import ModelError
from engine.models.formats.gguf_folder import folder_of
from engine.models.formats.method import quantization_said


def read_config(model: str) -> tuple[str, dict[str, Any]]:
    """Read (name, config.json) of a folder, of a well-known model, or of one on the hub."""
    folder = Path(POCKET_MODEL if model == "pocket" else model).expanduser()
    if folder.suffix.lower() == ".gguf":
        return _of_gguf(folder)
    if not folder.is_dir() and not model.startswith((".", "/", "~")):
        return model, known_config(model) or _with_quantization(folder, _from_hub(model))
    path = folder / "config.json"
    try:
        pocket = folder == Path(POCKET_MODEL)
        config = json.loads(path.read_text())
    except OSError:
        raise PlanError(f"{folder} has no config.json; name a model's folder or its id.") from None
    except ValueError:
        raise PlanError(f"{path} is not JSON; download it again.") from None
    return "pocket" if pocket else folder.resolve().name, _with_quantization(folder, config)


def _with_quantization(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Return the config with what is said of quantized matrices, there or in a file beside it."""
    try:
        said = quantization_said(folder, config.get("quantization_config"))
    except ModelError as error:
        raise PlanError(str(error)) from None
    return {**config, "quantization_config": said}


def _of_gguf(path: Path) -> tuple[str, dict[str, Any]]:
    """Read what a GGUF file says, in transformers' words, and what its weights take."""
    try:
        folder = folder_of(str(path))
        if folder is None:
            raise PlanError(f"{path} is not there; name a GGUF file.")
        return path.name, {
            **json.loads((Path(folder) / "config.json").read_text()),
            "quantization_config": of_file(path),
        }
    except ModelError as error:
        raise PlanError(str(error)) from None


def _from_hub(model: str) -> dict[str, Any]:
    """Read config.json of a model on the hub, and nothing else of it."""
    import httpx  # imported here: most plans need no network

    hub = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    token = os.environ.get("HF_TOKEN")
    try:
        answer = httpx.get(
            f"{hub}/{model}/resolve/main/config.json",
            headers={"Authorization": f"Bearer {token}"} if token else None,
            follow_redirects=True,
            timeout=20,
        )
        answer.raise_for_status()
        return answer.json()
    except httpx.HTTPStatusError as error:
        code = error.response.status_code
        reason = {
            401: "it is private or gated, or there is no such model: check the name, set HF_TOKEN",
            403: "its terms are not accepted by the account of HF_TOKEN",
            404: "there is no such model",
        }.get(code, f"HTTP {code}")
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        reason = f"{error}; check the network"
    raise PlanError(
        f"{model} is no folder and not in the table of well-known models, and {hub} does not give"
        f" its config.json: {reason}."
    )
