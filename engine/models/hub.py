"""Find a model's files: in a local folder, or on the Hugging Face hub, downloaded once.

Only what the engine reads is downloaded: the config, the tokenizer, and one set of weights,
safetensors where there are any, else `.bin`.
"""

from __future__ import annotations

from pathlib import Path

from engine.config import EngineConfig
from engine.models.download_watch import Progress
from engine.models.errors import ModelError
from engine.models.formats.recognise import refuse_other_formats
from engine.models.named import local_folder


def find_model(
    model: str,
    revision: str | None,
    token: str | None,
    progress: Progress | None = None,
    cache: str | None = None,
) -> Path:
    """Return the folder with the model's files, after a download where one is needed.

    model: one of `named.NAMES`, a local folder or a hub id. cache: the folder of downloads, instead
    of the hub's own. Raises `ModelError` where there is no such model, where it is gated or of
    another format, or where the hub can't be reached.
    """
    model = local_folder(model, progress)
    refuse_other_formats(model)
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists() or model.startswith((".", "/", "~")):
        raise ModelError(f"{model} is not a folder; name a model's folder or a hub id.")
    from engine.models.hub_download import from_hub  # for a local model the hub costs memory

    return from_hub(model, revision, token, progress, cache)


def find_draft(config: EngineConfig, progress: Progress | None = None) -> Path | None:
    """Return the folder of the draft model; None if none is asked for. Raises `ModelError`."""
    asked = config.speculation
    if asked is None or not asked.model:
        return None
    try:
        return find_model(asked.model, None, config.hf_token, progress, config.download_dir)
    except ModelError as error:
        raise ModelError(f"the draft model of --speculative-config: {error}") from None
