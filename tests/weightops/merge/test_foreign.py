"""What mergekit writes takes its place by the same rules as what weightops writes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import tiny_models as tiny

from weightops.errors import WeightopsError
from weightops.io.output_lock import OutputLock
from weightops.merge import foreign


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A merge file, and a mergekit that writes a model at once, or ends with the code in the file."""
    file = tmp_path / "merge.yaml"
    file.write_text("0")

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        to = next(Path(part) for part in command if part.endswith("/model"))
        to.mkdir(parents=True)
        for name in ("config.json", "model.safetensors", "mergekit_config.yml"):
            (to / name).write_text("new")
        return subprocess.CompletedProcess(command, int(file.read_text()))

    monkeypatch.setattr(subprocess, "run", run)
    return file


def test_a_model_of_mergekit_is_replaced_with_overwrite_and_nothing_stays_beside_it(config, tmp_path):
    foreign.run_mergekit(config, tmp_path / "out")
    with pytest.raises(WeightopsError, match="exists already"):
        foreign.run_mergekit(config, tmp_path / "out")
    foreign.run_mergekit(config, tmp_path / "out", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merge.yaml", "out"]
    assert (tmp_path / "out/config.json").read_text() == "new"


@pytest.mark.parametrize("name", ["notes.md", "data/rows.csv"])
def test_a_folder_with_anything_else_in_it_is_kept(name, config, tmp_path):
    (tmp_path / "out" / name).parent.mkdir(parents=True)
    (tmp_path / "out" / name).write_text("mine")
    before = tiny.files_of(tmp_path)
    with pytest.raises(WeightopsError, match="is not replaced"):
        foreign.run_mergekit(config, tmp_path / "out", overwrite=True)
    assert tiny.files_of(tmp_path) == before


def test_a_run_that_fails_leaves_the_old_output_and_nothing_beside_it(config, tmp_path):
    foreign.run_mergekit(config, tmp_path / "out")
    (tmp_path / "out/config.json").write_text("old")
    config.write_text("3")
    with pytest.raises(WeightopsError, match="mergekit ended with code 3"):
        foreign.run_mergekit(config, tmp_path / "out", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merge.yaml", "out"]
    assert (tmp_path / "out/config.json").read_text() == "old"


def test_a_folder_that_others_may_have_prepared_is_refused(config, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".out.mergekit").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(WeightopsError, match="remove it"):
        foreign.run_mergekit(config, tmp_path / "out")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_an_old_output_that_a_kill_left_between_the_renames_comes_back(config, tmp_path):
    (tmp_path / ".out.mergekit").mkdir(mode=0o700)
    tiny.write(tmp_path / ".out.mergekit/displaced", tiny.llama(0, layers=1))
    config.write_text("3")
    with pytest.raises(WeightopsError, match="mergekit ended with code 3"):
        foreign.run_mergekit(config, tmp_path / "out", overwrite=True)
    assert (tmp_path / "out/model.safetensors").exists()


@pytest.mark.parametrize("search_path", ["", ":.:"])
def test_modules_that_lie_in_the_current_folder_are_not_run(tmp_path, monkeypatch, search_path):
    pytest.importorskip("mergekit")
    here = tmp_path / "here"
    planted = f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n"
    for name in ("yaml.py", "torch.py", "mergekit/__init__.py", "mergekit/scripts/run_yaml.py"):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text(planted)
    (here / "merge.yml").write_text("merge_method: nonsense\nmodels: [{model: a}]\n")
    monkeypatch.chdir(here)
    monkeypatch.setenv("PYTHONPATH", search_path)
    with pytest.raises(WeightopsError, match="mergekit ended with code"):
        foreign.run_mergekit(Path("merge.yml"), Path("out"))
    assert not (tmp_path / "ran").exists()


def test_two_runs_to_one_output_are_not_made_at_once(config, tmp_path):
    with OutputLock(tmp_path / "out"), pytest.raises(WeightopsError, match="another process is writing it"):
        foreign.run_mergekit(config, tmp_path / "out")
    foreign.run_mergekit(config, tmp_path / "out")
