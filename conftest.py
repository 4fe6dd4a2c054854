"""Examples in docstrings run in a folder that holds three tiny models: base, guard and target."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def _models_of_examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import tiny_models

    folder = tmp_path_factory.mktemp("examples")
    for seed, name in enumerate(("base", "guard", "target")):
        tiny_models.write(
            folder / name, tiny_models.llama(seed), config={"model_type": "llama", "num_hidden_layers": 2}
        )
    return folder


@pytest.fixture(autouse=True)
def _in_their_folder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if isinstance(request.node, pytest.DoctestItem):
        monkeypatch.chdir(request.getfixturevalue("_models_of_examples"))
