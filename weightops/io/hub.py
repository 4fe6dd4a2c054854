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


def download(spec: str) -> Path:
    """The snapshot folder of a hub model, downloaded where it is not cached; the client shows progress.

    Raises:
        WeightopsError: not found, not allowed, or not reachable and not cached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    match, beside = _ID.match(spec), [*download_patterns(), "README.md"]  # the card states the licence
    repo, revision = (match["repo"], match["revision"]) if match else (spec, None)
    try:
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=[*beside, "*.safetensors"]))
        if not any(folder.glob("*.safetensors")):
            snapshot_download(repo, revision=revision, allow_patterns=[*beside, "*.bin"])
    except GatedRepoError as error:
        raise WeightopsError(
            f"{spec}: the hub asks for permission; accept the model's terms there and run `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise WeightopsError(
            f"{spec}: no revision {revision!r} of {repo} on the hub; check the name after @"
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise WeightopsError(
            f"{spec}: no such folder here, and no such model on the hub; check the spelling"
        ) from error
    except LocalEntryNotFoundError as error:
        raise WeightopsError(
            f"{spec}: not in the local cache, and the hub cannot be reached; connect, or name a local folder"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise WeightopsError(
            f"{spec}: the download failed ({type(error).__name__}); run the command again to go on"
        ) from error
    return folder
