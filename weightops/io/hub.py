"""Models on the Hugging Face hub: ``org/name`` or ``org/name@revision``, through the hub's own client and cache."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import WeightopsError
from .companions import download_patterns

_ID = re.compile(r"^(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?$")


def is_hub_id(spec: str) -> bool:
    """Whether a spec has the form ``org/name[@revision]``."""
    return _ID.match(spec) is not None and not spec.startswith((".", "/"))


def hub_place(out: Path | str) -> str | None:
    """The problem line for an output that is to be a repository of the hub; ``None`` for any other.

    >>> hub_place("hf://org/name"), hub_place("org/name")
    ('hf://org/name: outputs are written to a folder; write to one, then run weightops push FOLDER org/name', None)
    """
    scheme, separator, repository = str(out).partition(":/")
    if scheme != "hf" or not separator:
        return None
    name = repository.strip("/")
    return f"hf://{name}: outputs are written to a folder; write to one, then run weightops push FOLDER {name}"


def download(spec: str) -> Path:
    """The snapshot folder of a hub model, downloaded unless it is cached; the hub's client shows progress.

    Raises:
        WeightopsError: the model is not found, needs permission, or is not cached while the hub is unreachable.
    """
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    match, small_files = _ID.match(spec), [*download_patterns(), "README.md"]  # the card states the licence
    repo, revision = (match["repo"], match["revision"]) if match else (spec, None)
    try:
        folder = _snapshot(repo, revision, [*small_files, "*.safetensors"])
        if not any(folder.glob("*.safetensors")):
            _snapshot(repo, revision, [*small_files, "*.bin"])
    except GatedRepoError as error:
        raise WeightopsError(
            f"{spec}: the hub requires permission; accept the model's terms on its page and run `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise WeightopsError(
            f"{spec}: {repo} does not have the revision {revision!r} on the hub; check the name after @"
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise WeightopsError(
            f"{spec}: there is no local folder and no hub model of this name; check the spelling"
        ) from error
    except LocalEntryNotFoundError as error:
        raise WeightopsError(
            f"{spec}: not in the local cache, and the hub cannot be reached; connect, or name a local folder"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise WeightopsError(
            f"{spec}: the download failed ({type(error).__name__}); run the same command again to resume"
        ) from error
    return folder


def _snapshot(repo: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
    except OfflineModeIsEnabled:  # huggingface_hub before 2.2, for a commit that is cached
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns, local_files_only=True))
