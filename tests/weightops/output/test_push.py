"""An output is pushed whole, unchanged and resumable to a hub that a real client talks to, and reloads from there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_models as tiny
from click.testing import CliRunner
from fake_hub import FakeHub, Repository, connected, fake_hub
from huggingface_hub import hf_hub_download, snapshot_download
from tiny_chat import write_chat_model

import weightops as wo
from weightops.cli import main
from weightops.output.provenance import verify


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    with fake_hub() as hub, connected(hub, str(tmp_path / "hub")):
        yield hub


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An output in several files."""
    base = tiny.llama(0)
    a, b = (wo.open(tiny.write(tmp_path / f"m{n}", tiny.perturbed(base, n))) for n in range(2))
    return (a + (b - a)).save(tmp_path / "out", shard_size=9_000, progress=False)


def push(out: Path, *more: str, repository: str = "org/name"):  # type: ignore[no-untyped-def]
    return CliRunner().invoke(main, ["push", str(out), repository, *more])


def refused(result, *says: str) -> None:  # type: ignore[no-untyped-def]
    """Exit code 1 and one line."""
    (line,) = [line for line in result.stderr.splitlines() if not line.startswith("note: ")]
    assert (result.exit_code, result.stdout) == (1, "")
    assert line.startswith("error: ")
    assert "bug in weightops" not in line
    for text in says:
        assert text in line, line


def test_a_pushed_copy_is_the_output_and_opens_from_the_hub(hub, out):
    result = push(out)
    assert result.exit_code == 0, result.output
    assert f"to {hub.url}/org/name (commit " in result.stdout
    assert result.stderr.splitlines()[-1] == "next: weightops inspect org/name"
    assert not hub.repositories["org/name"].private
    copy = Path(snapshot_download("org/name"))
    assert tiny.files_of(copy).keys() - tiny.files_of(out).keys() == {".gitattributes"}
    assert verify(copy) == []
    pushed, local = wo.open("org/name"), wo.open(out)
    assert all(tiny.same_bytes(pushed.tensor(name), local.tensor(name)) for name in local.names)


def test_the_commit_is_one_and_the_card_is_checked_before_anything_is_made_or_sent(hub, out):
    assert push(out, "--private").exit_code == 0
    assert len(hub.repositories["org/name"].commits) == 2
    assert hub.repositories["org/name"].private
    order = [
        request for request in hub.requests if "validate-yaml" in request or "create" in request or "PUT" in request
    ]
    assert order[0] == "POST /api/validate-yaml"


def test_only_files_of_the_model_are_pushed_and_the_others_are_named(hub, out):
    (out / "notes.txt").write_text("mine")
    (out / ".out.weightops").mkdir()
    (out / ".out.weightops/journal.jsonl").write_text("{}")
    result = push(out)
    assert result.exit_code == 0
    files = set(hub.repositories["org/name"].files)
    assert not {"notes.txt", ".out.weightops/journal.jsonl"} & files
    assert {"config.json", "README.md", "weightops.json", "model.safetensors.index.json"} <= files
    assert result.stderr.count("is not part of the model, and is not uploaded") == 2


def test_a_dry_run_lists_files_and_bytes_and_asks_nothing(hub, out):
    result = push(out, "--dry-run", "--json")
    listed = json.loads(result.stdout)
    assert listed["files"] == {p.name: p.stat().st_size for p in out.iterdir()}
    assert listed["bytes"] == sum(listed["files"].values())
    assert hub.requests == []
    assert "nothing was uploaded" in push(out, "--dry-run").stdout


def test_after_a_broken_upload_nothing_is_published_and_only_the_rest_is_sent(hub, out):
    hub.failing.append("/api/models/org/name/commit")
    refused(push(out), "the upload failed", "run the same command again to resume")
    sent = hub.uploads()
    assert len(sent) == len(list(out.glob("*.safetensors"))) > 1
    assert len(hub.repositories["org/name"].commits) == 1
    hub.failing.clear()
    hub.blobs.pop(sent[0])
    assert push(out).exit_code == 0
    assert hub.uploads()[len(sent) :] == sent[:1]
    assert push(out).exit_code == 0
    assert len(hub.repositories["org/name"].commits) == 2  # what is there already is not published again


@pytest.mark.parametrize("pattern", ["config.json", "model-00001*.safetensors"])
def test_a_changed_output_is_refused_before_the_hub_is_asked(pattern, hub, out):
    (file,) = out.glob(pattern)
    raw = bytearray(file.read_bytes())
    raw[-2] ^= 0x10
    file.write_bytes(raw)
    refused(push(out), file.name, "changed since it was written")
    assert hub.requests == []


def test_an_edited_card_is_pushed_with_a_note_and_a_broken_one_refused(hub, out):
    card = (out / "README.md").read_text()
    (out / "README.md").write_text(card + "\nTried on my own questions.\n")
    assert "was edited" in push(out).stderr
    (out / "README.md").write_text(card.replace("---\n", "---\nlicense: [mit\n", 1))
    refused(push(out), "README.md", "metadata cannot be read")
    (out / "README.md").write_text(card.replace("---\n", "---\nlicense: 3\n", 1))
    refused(push(out), "README.md", "the hub refuses its metadata", "license")
    (out / "README.md").write_text("# Mine\n")
    refused(push(out), "README.md", "no metadata at its start")


def test_what_is_not_a_finished_output_is_refused(hub, out, tmp_path):
    refused(push(tmp_path / "m0"), "no weightops.json")
    refused(push(tmp_path / "nowhere"), "no such folder")
    (tmp_path / ".half.weightops/model").mkdir(parents=True)
    refused(push(tmp_path / "half"), "is not finished", "again to resume")
    made = json.loads((out / "weightops.json").read_text())
    (out / "weightops.json").write_text(json.dumps({**made, "files": sorted(made["files"])}))
    refused(push(out), "without digests", "write the output again")
    assert hub.requests == []


def test_a_file_that_changes_during_the_upload_is_not_published(hub, out, monkeypatch):
    from huggingface_hub import HfApi

    upload = HfApi.preupload_lfs_files

    def upload_and_touch(*args, **more):  # type: ignore[no-untyped-def]
        upload(*args, **more)
        os.utime(out / "config.json", ns=(1, 1))

    monkeypatch.setattr(HfApi, "preupload_lfs_files", upload_and_touch)
    refused(push(out), "config.json: has changed while it was uploaded; nothing was published")
    assert len(hub.repositories["org/name"].commits) == 1


@pytest.mark.parametrize(
    ("token", "repository", "says"),
    [
        (None, "org/name", "no token for the hub; run `hf auth login`, or set HF_TOKEN"),
        ("hf_wrong", "org/name", "the hub does not accept the token"),
        ("hf_reader", "org/name", "the token may not write there"),
        ("hf_writer", "others/name", "the token may not write there"),
        ("hf_writer", "name", "is not the name of a repository of the hub; write REPOSITORY as org/name"),
        ("hf_writer", "org/name@main", "is not the name of a repository"),
        ("hf_writer", "org/na--me", "the upload failed"),
    ],
)
def test_a_token_or_a_name_that_does_not_serve_is_one_line(token, repository, says, hub, out, tmp_path):
    with connected(hub, str(tmp_path / "hub"), token):
        refused(push(out, repository=repository), says)
    assert hub.uploads() == []


def test_a_hub_that_does_not_answer_is_one_line(hub, out, tmp_path):
    with connected(FakeHub("http://127.0.0.1:9"), str(tmp_path / "hub")):
        refused(push(out), "the upload failed", "ConnectError")


def test_a_public_repository_is_not_filled_when_a_private_one_was_asked_for(hub, out):
    hub.repositories["org/name"] = Repository()
    refused(push(out, "--private"), "exists on the hub and is public")
    assert len(hub.repositories["org/name"].commits) == 1


def test_weights_that_would_be_loaded_instead_are_refused_or_deleted(hub, out):
    hub.repositories["org/name"] = Repository(commits=[{"model.safetensors": b"old", "eval.txt": b"kept"}])
    refused(push(out), "holds other weights", "model.safetensors", "--overwrite")
    assert push(out, "--overwrite").exit_code == 0
    files = hub.repositories["org/name"].files
    assert "model.safetensors" not in files
    assert files["eval.txt"] == b"kept"


@pytest.mark.slow
def test_a_cut_pushed_by_the_command_reloads_in_transformers_from_the_hub(tmp_path):
    """In processes of their own, told of the hub by its environment variables only."""
    write_chat_model(tmp_path / "whole")
    wo.extract(tmp_path / "whole", layers=1).save(tmp_path / "cut", progress=False)
    with fake_hub() as hub:
        told = {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "home"),
            "HF_TOKEN": "hf_writer",
            "HF_HUB_OFFLINE": "0",
        }
        environment = os.environ | told | {"HF_HUB_DISABLE_XET": "1"}
        code = "from transformers import AutoModelForCausalLM as A; print(A.from_pretrained('org/cut').config.num_hidden_layers)"
        for words in (["-m", "weightops", "push", str(tmp_path / "cut"), "org/cut", "--private"], ["-c", code]):
            done = subprocess.run(
                [sys.executable, *words], env=environment, capture_output=True, text=True, timeout=120
            )
            assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "1"


def test_one_file_of_a_pushed_model_downloads_alone(hub, out):
    assert push(out).exit_code == 0
    assert Path(hf_hub_download("org/name", "config.json")).read_bytes() == (out / "config.json").read_bytes()
