"""A hub model opens from the hub's own cache without a network, with its revision; a missing one is one line."""

from __future__ import annotations

import json
from pathlib import Path

import huggingface_hub.constants
import pytest
import tiny_models as tiny

import weightops as wo
from weightops.errors import WeightopsError
from weightops.guard.compose import compose_guard
from weightops.io.hub import is_hub_id
from weightops.output.save import save

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, and no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert huggingface_hub.constants.HF_HUB_OFFLINE
    (tmp_path / "hub").mkdir()
    return tmp_path / "hub"


def cached(hub: Path, name: str, tensors: tiny.Tensors, *, shards: int = 1, refs: tuple[str, ...] = ("main",)) -> Path:
    """A model as the hub's client leaves it: blobs, a snapshot of links to them, and refs."""
    repo = hub / f"models--{name.replace('/', '--')}"
    snapshot, blobs = repo / "snapshots" / COMMIT, repo / "blobs"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    for ref in refs:
        (repo / "refs" / ref).write_text(COMMIT)
    plain = tiny.write(hub / "plain", tensors, shards=shards)
    for number, file in enumerate(sorted(plain.iterdir())):
        blob = file.rename(blobs / f"{number:064x}")
        (snapshot / file.name).symlink_to(Path("../../blobs") / blob.name)
    plain.rmdir()
    return snapshot


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("spec", ["org/name", "org/name@main", "org/name@v1.0", f"org/name@{COMMIT}"])
def test_a_cached_model_opens_offline_with_its_revision(spec, shards, hub):
    tensors = tiny.llama(0)
    snapshot = cached(hub, "org/name", tensors, shards=shards, refs=("main", "v1.0"))
    model = wo.open(spec)
    assert (model.source.revision, model.source.folder, model.source.spec) == (COMMIT, snapshot, spec)
    assert set(model.names) == set(tensors)
    assert tiny.same_bytes(model.tensor("model.norm.weight"), tensors["model.norm.weight"])


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("org/other", "org/other: not in the local cache, and the hub cannot be reached"),
        ("org/name@v2", "org/name@v2: not in the local cache, and the hub cannot be reached"),
        ("org/na--me", "org/na--me: there is no local folder and no hub model of this name"),
    ],
)
def test_a_model_that_is_not_cached_is_one_line_that_says_what_to_do(spec, says, hub):
    cached(hub, "org/name", tiny.llama(0))
    with pytest.raises(WeightopsError) as caught:
        wo.open(spec)
    (problem,) = caught.value.problems
    assert problem.startswith(says)


def test_a_snapshot_without_weights_is_named(hub):
    snapshot = cached(hub, "org/name", tiny.llama(0))
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(WeightopsError, match=r"snapshots/0123456789abcdef.*: no \.safetensors weights"):
        wo.open("org/name")


def test_a_link_to_another_repository_of_the_cache_is_refused(hub):
    other = cached(hub, "org/other", tiny.llama(0))
    mine = cached(hub, "org/name", tiny.llama(0))
    (mine / "model.safetensors").unlink()
    (mine / "model.safetensors").symlink_to((other / "model.safetensors").resolve())
    with pytest.raises(WeightopsError, match="a link out of its folder"):
        wo.open("org/name")


def test_the_record_and_the_card_name_the_hub_model_and_its_revision(hub, tmp_path):
    base = tiny.llama(0)
    cached(hub, "org/base", base)
    cached(hub, "org/guard", tiny.perturbed(base, 1))
    mine = tiny.write(tmp_path / "org/mine", base)
    models = [wo.open(spec) for spec in ("org/guard", "org/base@main", mine)]
    composition = compose_guard(*models)
    save(composition.plan, composition.package, tmp_path / "out", progress=False)
    made = json.loads((tmp_path / "out/weightops.json").read_text())
    assert [(s["name"], s.get("revision")) for s in made["sources"]] == [
        ("org/guard", COMMIT),
        ("org/base@main", COMMIT),
        (str(mine), None),
    ]
    card = (tmp_path / "out/README.md").read_text()
    assert "base_model:\n- org/guard\n- org/base\nbase_model_relation: merge\n" in card
    assert COMMIT in card


def test_a_hub_id_has_one_slash_and_does_not_look_like_a_path():
    assert all(is_hub_id(spec) for spec in ("org/name", "o-1/n.a_me@main", "org/name@refs/pr/1"))
    assert not any(is_hub_id(spec) for spec in ("name", "./name", "/name/x", "../a/b", "a/b/c", "a b/c", "org/name@"))
