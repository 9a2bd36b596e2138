"""Download a model's files from the Hugging Face hub, once: all later starts find them here."""

from __future__ import annotations

import fnmatch
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants, errors

from engine.models.download_watch import DownloadWatch, Progress
from engine.models.errors import ModelError
from engine.models.formats.recognise import refuse_by_names

SMALL_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken")
"""Config, tokenizer, chat template, and the indexes of sharded weights."""


def from_hub(
    model: str,
    revision: str | None,
    token: str | None,
    progress: Progress | None = None,
    cache: str | None = None,
) -> Path:
    """Return the folder of a model on the hub. See `find_model`.

    Raises `ModelError` where there is none, where it is gated, or where the hub can't be reached.
    """
    try:
        return _download(model, revision, token, progress, cache)
    except ModelError:
        raise
    except errors.GatedRepoError:
        raise ModelError(
            f"{model} is gated: accept its terms at https://huggingface.co/{model}, then set"
            " HF_TOKEN to a token of that account."
        ) from None
    except errors.RepositoryNotFoundError:
        raise ModelError(
            f"{model} is neither a local folder nor a model on the hub; check the name, and set"
            " HF_TOKEN if it is private."
        ) from None
    except errors.RevisionNotFoundError:
        raise ModelError(f"{model} has no revision {revision!r}; check --revision.") from None
    except errors.HFValidationError:
        raise ModelError(
            f"{model!r} is neither a local folder nor a hub id (owner/name); check the name."
        ) from None
    except Exception as error:  # the HTTP clients of the hub's library have errors of their own
        raise ModelError(
            f"{model} is not on this machine and could not be downloaded ({_first_line(error)});"
            " check the network, or name a local folder."
        ) from None


def _download(
    model: str,
    revision: str | None,
    token: str | None,
    progress: Progress | None,
    cache: str | None,
) -> Path:
    try:
        info = huggingface_hub.HfApi(token=token).model_info(
            model, revision=revision, files_metadata=True
        )
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, ValueError):
        raise  # the hub has answered, or the name is no hub id
    except Exception as error:  # no network, no hub: errors of many kinds, see `find_model`
        return _cached(model, revision, error, cache)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    refuse_by_names(model, sizes)
    wanted = _wanted(sizes)
    name = f"models--{model.replace('/', '--')}"
    blobs = Path(cache or constants.HF_HUB_CACHE) / name / "blobs"
    with DownloadWatch(blobs, sum(sizes[name] for name in wanted), progress):
        folder = huggingface_hub.snapshot_download(
            model, revision=revision, token=token, allow_patterns=[*wanted], cache_dir=cache
        )
    return Path(folder)


def _cached(model: str, revision: str | None, why: Exception, cache: str | None) -> Path:
    """Return the model that an earlier run downloaded, or raise why the hub couldn't be asked."""
    try:
        folder = huggingface_hub.snapshot_download(
            # if asked for more, it may refuse a folder because of files that we never wanted
            model,
            revision=revision,
            local_files_only=True,
            allow_patterns=["config.json"],
            cache_dir=cache,
        )
    except errors.LocalEntryNotFoundError:
        raise why from None
    return Path(folder)


def _wanted(sizes: dict[str, int]) -> list[str]:
    """Choose from a repository's top-level files those that we read."""
    top = [name for name in sizes if "/" not in name]
    kinds = ("model*.safetensors", "*.safetensors", "pytorch_model*.bin")
    weights = next((found for kind in kinds if (found := fnmatch.filter(top, kind))), [])
    small = [name for name in top if any(fnmatch.fnmatch(name, p) for p in SMALL_FILES)]
    return sorted({*weights, *small})


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__
