"""What every test stands on: no network, a cache of its own, one torch thread, tiny models."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported: it reads this once
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# A slow machine is no fault of the code. On CI every run draws the same examples, so that a red run can be repeated.
settings.register_profile(
    "weightops", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=bool(os.environ.get("CI"))
)
settings.load_profile("weightops")


@pytest.fixture(scope="session", autouse=True)
def _one_torch_thread() -> None:
    """Two cores, shared."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Conversions go to a folder of this run, never to the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WEIGHTOPS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def headers_read(monkeypatch: pytest.MonkeyPatch) -> Counter[Path]:
    """How often each file's header was read so far in the test: what opening a model costs."""
    from weightops.io import folder

    read, counts = folder.read_header, Counter[Path]()

    def counting(file: Path) -> object:
        counts[file] += 1
        return read(file)

    monkeypatch.setattr(folder, "read_header", counting)
    return counts
