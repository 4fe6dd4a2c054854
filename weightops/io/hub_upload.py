"""Files to a model repository of the Hugging Face hub, in one commit, through the hub's own client."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ..errors import Message, Remedy, WeightopsError, short
from ..version import __version__
from .hub import is_hub_id
from .progress import Progress, progress_is_shown

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi

_WEIGHTS: Final = ("*.safetensors", "*.bin", "*.index.json", "*.gguf")
"""Files that a program may load as the model."""


@dataclass(frozen=True)
class UploadedTo:
    """Where the files are: the repository's page, and the commit."""

    url: str
    commit: str


def upload(
    repository: str,
    files: Mapping[str, Path],
    *,
    private: bool,
    overwrite: bool,
    message: str,
    accept: Callable[[], None],
    progress: bool = True,
) -> UploadedTo:
    """Upload files, then publish all of them in one commit.

    The hub keeps large files that no commit names yet, so a second call sends only those that are missing.

    Args:
        repository: ``org/name``; it is made if it does not exist.
        files: By their names in the repository; one is ``README.md``, which the hub checks before anything is sent.
        private: For a new repository. One that exists and is public is refused.
        overwrite: Delete other weights from the repository in the same commit; otherwise they are refused.
        message: Of the commit.
        accept: Called when all is uploaded and nothing published; raises to publish nothing.

    Raises:
        WeightopsError: one line: no token, no permission, a name or a card that the hub refuses, a broken connection.
    """
    check_repository_name(repository)
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi(library_name="weightops", library_version=__version__)
    with _one_line(repository):
        _check_card(files["README.md"])
        api.whoami()
        _make_repository(api, repository, private=private)
        others = _other_weights(api, repository, files)
        if others and not overwrite:
            raise WeightopsError(_holds_weights(repository, others))
        additions = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in files.items()]
        with _shown(additions, repository, shown=progress) as bar:
            for addition in additions:
                api.preupload_lfs_files(repository, additions=[addition], free_memory=False)
                bar.update(addition.upload_info.size)
        accept()
        deletions = [CommitOperationDelete(path_in_repo=name) for name in others]
        commit = api.create_commit(repository, operations=[*deletions, *additions], commit_message=message)
    return UploadedTo(f"{api.endpoint}/{repository}", commit.oid)


def check_repository_name(repository: str) -> None:
    """Refuse what is not ``org/name``.

    Raises:
        WeightopsError: it is something else.
    """
    if not is_hub_id(repository) or "@" in repository:
        problem = f"{short(repository)}: is not the name of a repository of the hub"
        raise WeightopsError(Message(problem, Remedy("write {} as org/name", "repository")))


def _check_card(file: Path) -> None:
    """Have the hub check the card's metadata."""
    from huggingface_hub import ModelCard

    try:
        ModelCard(file.read_text("utf-8")).validate()
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise WeightopsError(f"{file}: the hub refuses its metadata: {short(reason, 300)}") from error


def _make_repository(api: HfApi, repository: str, *, private: bool) -> None:
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        known = api.model_info(repository)
    except RepositoryNotFoundError:
        api.create_repo(repository, private=private, exist_ok=True)
        return
    if private and not known.private:
        problem = f"{repository}: exists on the hub and is public"
        raise WeightopsError(
            Message(problem, Remedy("make it private on its page"), Remedy("choose another {}", "repository"))
        )


def _other_weights(api: HfApi, repository: str, files: Mapping[str, Path]) -> list[str]:
    """Weights in the repository that the upload would not replace."""
    names = api.list_repo_files(repository)
    return [n for n in names if n not in files and any(fnmatchcase(n, pattern) for pattern in _WEIGHTS)]


def _holds_weights(repository: str, others: list[str]) -> str:
    more = f" and {len(others) - 3} more" if len(others) > 3 else ""
    problem = f"{repository}: holds other weights, which programs may load instead: {', '.join(others[:3])}{more}"
    return Message(
        problem, Remedy("delete them in the same commit with {}", "overwrite", True),
        Remedy("choose another {}", "repository"),
    )  # fmt: skip


@contextmanager
def _one_line(repository: str) -> Iterator[None]:
    """Everything that the hub's client raises, as one line. Its own errors have no common class: it passes on those of
    its HTTP library and of Xet."""
    try:
        yield
    except WeightopsError:
        raise
    except Exception as error:
        raise WeightopsError(_worded(repository, error)) from error


def _worded(repository: str, error: Exception) -> str:
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    if isinstance(error, LocalTokenNotFoundError):
        return f"{repository}: no token for the hub; run `hf auth login`, or set HF_TOKEN"
    if isinstance(error, OfflineModeIsEnabled):
        return f"{repository}: the hub's client is offline; unset HF_HUB_OFFLINE"
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if status == 401:
        return f"{repository}: the hub does not accept the token; run `hf auth login` again, or set another HF_TOKEN"
    if status == 403:
        return f"{repository}: the token may not write there; use one that may (role: write)"
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return f"{repository}: the upload failed ({short(reason, 300)}); run the same command again to resume"


@contextmanager
def _shown(additions: list[CommitOperationAdd], repository: str, *, shown: bool) -> Iterator[Progress]:
    """Progress: on a terminal the bars of the hub's client, which move inside a file; elsewhere our lines."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    bars = shown and progress_is_shown() and sys.stderr.isatty()
    silence = not bars and not are_progress_bars_disabled()
    if silence:
        disable_progress_bars()
    try:
        total = sum(addition.upload_info.size for addition in additions)
        with Progress(total, f"uploading to {repository}", shown=shown and not bars) as bar:
            yield bar
    finally:
        if silence:
            enable_progress_bars()
