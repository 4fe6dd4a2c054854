"""An output is whole or not there: locked while it is made, resumed after a kill, put in place by a rename."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_models as tiny
import torch

from weightops.errors import WeightopsError
from weightops.io.staging import Staging, output_problems

PLAN = {"recipe": {"kind": "x"}, "layout": "1", "inputs": {"/a": [1, 2, "h"]}}
OTHER = PLAN | {"inputs": {"/a": [1, 3, "h"]}}
KILLED_RUNS = Path(tiny.__file__).with_name("killed_runs.py")


def start(out: Path, plan: dict = PLAN, **options: bool) -> Staging:
    """A run that has written a little, and is then interrupted."""
    with pytest.raises(KeyboardInterrupt), Staging(out, plan, **options) as staging:
        os.pwrite(staging.allocate("model.safetensors", b"head", 8), b"data", 4)
        staging.record({"job": 0})
        raise KeyboardInterrupt
    return staging


def finish(out: Path, content: bytes = b"head0000", plan: dict = PLAN, **options: bool) -> None:
    """A whole run."""
    with Staging(out, plan, **options) as staging:
        staging.allocate("model.safetensors", content, len(content))
        staging.write("config.json", b"{}")
        staging.write("additional_chat_templates/x.jinja", b"x")
        staging.commit()


WRITTEN = {"model.safetensors": b"head0000", "config.json": b"{}", "additional_chat_templates/x.jinja": b"x"}


def beside(out: Path) -> list[str]:
    """What stands in the output's parent."""
    return sorted(path.name for path in out.parent.iterdir())


@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "overwrite"])
def test_killed_at_any_call_to_the_system_a_run_is_resumed_to_the_same_bytes(overwrite, tmp_path):
    draw = torch.Generator().manual_seed(0)
    shapes = {"model.big.weight": (5, 1 << 16), "model.norm.weight": (16,), "model.x.weight": (40, 50)}
    for name in ("target", "guard", "base"):
        tiny.write(tmp_path / name, {n: torch.randn(s, generator=draw).bfloat16() for n, s in shapes.items()})
    command = [sys.executable, "-P", str(KILLED_RUNS), str(tmp_path), *["--overwrite"] * overwrite]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["faults"] == []
    assert result["points"] > 40


def test_a_finished_output_stands_in_its_place_and_nothing_beside_it(tmp_path):
    finish(tmp_path / "deep/out")
    assert tiny.files_of(tmp_path) == {f"deep/out/{name}": data for name, data in WRITTEN.items()}


def test_an_interrupted_run_leaves_only_a_hidden_folder_and_is_resumed_from_its_journal(tmp_path):
    staging = start(tmp_path / "out")
    assert beside(tmp_path / "out") == [".out.weightops"] == [staging.folder.name]
    with Staging(tmp_path / "out", PLAN) as resumed:
        assert resumed.done() == [{"job": 0}]
        descriptor = resumed.allocate("model.safetensors", b"head", 8)
        assert os.pread(descriptor, 8, 0) == b"headdata"
        resumed.commit()
    assert (tmp_path / "out/model.safetensors").read_bytes() == b"headdata"


def test_a_line_of_the_journal_that_a_kill_cut_short_is_dropped_and_the_next_one_follows_cleanly(tmp_path):
    journal = start(tmp_path / "out").folder / "journal.jsonl"
    journal.write_text(journal.read_text() + '{"job": 1, "blo')
    with pytest.raises(KeyboardInterrupt), Staging(tmp_path / "out", PLAN) as resumed:
        assert resumed.done() == [{"job": 0}]
        resumed.record({"job": 2})
        raise KeyboardInterrupt
    with Staging(tmp_path / "out", PLAN) as again:
        assert again.done() == [{"job": 0}, {"job": 2}]


def test_data_reach_the_disk_before_the_note_that_calls_them_done_and_before_the_rename(tmp_path, monkeypatch):
    calls: list[tuple[str, str]] = []

    def watched(name: str) -> None:
        call = getattr(os, name)

        def watching(what, *rest, **named):  # type: ignore[no-untyped-def]
            path = os.readlink(f"/proc/self/fd/{what}") if isinstance(what, int) else os.fspath(what)
            calls.append((name, Path(path).name))
            return call(what, *rest, **named)

        monkeypatch.setattr(os, name, watching)

    for name in ("fsync", "fdatasync", "rename", "pwrite"):
        watched(name)
    with Staging(tmp_path / "out", PLAN) as staging:
        os.pwrite(staging.allocate("model.safetensors", b"head", 8), b"data", 4)
        staging.record({"job": 0})
        assert ("fsync", "journal.jsonl") not in calls
        staging.flush()
        assert calls[-2:] == [("fdatasync", "model.safetensors"), ("fsync", "journal.jsonl")]
        staging.write("config.json", b"{}")
        staging.commit()
    last = [call for call in calls if call[0] != "pwrite"][-5:]
    assert last == [
        ("fsync", "config.json"),
        ("fsync", "model.safetensors"),
        ("fsync", "model"),
        ("rename", "model"),
        ("fsync", tmp_path.name),
    ]


def test_a_weightops_error_leaves_nothing_behind(tmp_path):
    with pytest.raises(WeightopsError, match="stop"), Staging(tmp_path / "out", PLAN) as staging:
        staging.allocate("model.safetensors", b"head", 8)
        raise WeightopsError("stop")
    assert beside(tmp_path / "out") == []


def test_a_run_of_another_plan_is_not_resumed_unless_it_is_told_to_start_over(tmp_path):
    start(tmp_path / "out")
    with pytest.raises(
        WeightopsError,
        match=r"cannot be resumed: its input /a has changed since then; discard it and start over with overwrite=True",
    ):
        Staging(tmp_path / "out", OTHER).__enter__()
    with pytest.raises(WeightopsError, match=r"cannot be resumed: its recipe or its sources were different"):
        Staging(tmp_path / "out", PLAN | {"layout": "2"}).__enter__()
    with Staging(tmp_path / "out", PLAN) as kept:  # a refusal takes nothing away
        assert kept.done() == [{"job": 0}]
        with pytest.raises(WeightopsError, match="another process"):
            Staging(tmp_path / "out", OTHER, overwrite=True).__enter__()
        kept.flush()
    with Staging(tmp_path / "out", OTHER, overwrite=True) as fresh:
        assert fresh.done() == []
        assert list(fresh.model.iterdir()) == []


def test_two_runs_cannot_write_one_output(tmp_path):
    with Staging(tmp_path / "out", PLAN) as first:
        first.allocate("model.safetensors", b"head", 4)
        first.write("config.json", b"{}")
        with pytest.raises(WeightopsError, match=r"out: another process is writing it; wait for it, or choose another"):
            Staging(tmp_path / "out", PLAN).__enter__()
        first.commit()
    assert (tmp_path / "out/model.safetensors").read_bytes() == b"head"
    finish(tmp_path / "out", b"next", overwrite=True)


def test_an_existing_output_is_kept_without_overwrite_and_replaced_with_it(tmp_path):
    finish(tmp_path / "out")
    before = tiny.files_of(tmp_path)
    with pytest.raises(
        WeightopsError, match=r"out: exists already; choose another out, or replace it with overwrite=True"
    ):
        finish(tmp_path / "out", b"other")
    assert tiny.files_of(tmp_path) == before
    (tmp_path / "out/vocab.txt").write_text("old")
    finish(tmp_path / "out", b"other", overwrite=True)
    assert tiny.files_of(tmp_path / "out") == WRITTEN | {"model.safetensors": b"other"}


@pytest.mark.parametrize("kind", ["file", "link", "dangling link"])
def test_a_file_or_a_link_in_the_output_place_counts_as_an_output(kind, tmp_path):
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    if kind == "file":
        out.write_text("mine")
    else:
        out.symlink_to(elsewhere)
    if kind == "link":
        elsewhere.mkdir()
        (elsewhere / "mine").write_text("mine")
    (problem,) = output_problems(out, [], 1, overwrite=False)
    assert "exists already" in problem
    before = tiny.files_of(tmp_path)
    with pytest.raises(WeightopsError, match="is not replaced, because it is"):
        finish(out, overwrite=True)
    assert tiny.files_of(tmp_path) == before
    assert os.path.lexists(out)
    assert out.is_symlink() == (kind != "file")
    assert tiny.files_of(elsewhere) == ({"mine": b"mine"} if kind == "link" else {})


def left_by(out: Path, when: str) -> None:
    """What a kill leaves before, between or after the two renames that replace an output."""
    finish(out, b"old")
    staging = start(out, overwrite=True)
    staging.write("config.json", b"{}")
    if when != "before":
        out.rename(staging.folder / "displaced")
    if when == "after":
        staging.model.rename(out)


@pytest.mark.parametrize("when", ["before", "between", "after"])
def test_killed_around_the_renames_the_old_output_or_the_new_one_is_recovered(when, tmp_path):
    out = tmp_path / "out"
    left_by(out, when)
    with pytest.raises(WeightopsError, match="exists already"):
        finish(out)
    assert (out / "model.safetensors").read_bytes() == (b"headdata" if when == "after" else b"old")
    with Staging(out, PLAN, overwrite=True) as resumed:
        done = resumed.done()
        descriptor = resumed.allocate("model.safetensors", b"head", 8)
        assert os.pread(descriptor, 8, 0) == b"head" + (b"data" if done else bytes(4))
        assert not done or when != "after"  # what was put in place is not in the folder any more
        os.pwrite(descriptor, b"data", 4)
        resumed.commit()
    assert (out / "model.safetensors").read_bytes() == b"headdata"
    assert beside(out) == ["out"]


def test_a_rename_that_fails_puts_the_old_output_back(tmp_path, monkeypatch):
    finish(tmp_path / "out", b"old")
    rename = Path.rename

    def failing(self: Path, to: Path) -> Path:
        if self.name == "model":
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="Input/output"):
        finish(tmp_path / "out", b"new", overwrite=True)
    assert (tmp_path / "out/model.safetensors").read_bytes() == b"old"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG, errno.EDQUOT])
def test_a_full_disk_is_found_before_anything_is_computed(number, tmp_path, monkeypatch):
    def full(descriptor: int, begin: int, size: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(
        WeightopsError, match=r"model.safetensors: not enough space for 8 bytes \(.*\); free some space"
    ):
        finish(tmp_path / "out")
    assert beside(tmp_path / "out") == []


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_that_cannot_allocate_ahead_gives_the_same_file(number, tmp_path, monkeypatch):
    def unknown(descriptor: int, begin: int, size: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", unknown)
    with Staging(tmp_path / "out", PLAN) as staging:
        staging.allocate("model.safetensors", b"head", 8)
        staging.commit()
    assert (tmp_path / "out/model.safetensors").read_bytes() == b"head" + bytes(4)


def test_a_disk_that_fills_up_on_the_way_keeps_what_is_done(tmp_path):
    with pytest.raises(OSError, match="No space"), Staging(tmp_path / "out", PLAN) as staging:
        staging.allocate("model.safetensors", b"head", 8)
        staging.record({"job": 0})
        raise OSError(errno.ENOSPC, "No space left on device")
    with Staging(tmp_path / "out", PLAN) as resumed:
        assert resumed.done() == [{"job": 0}]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(WeightopsError, match="cannot be written"):
        finish(tmp_path / "out")


def test_a_parent_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightopsError, match=r"file/out: cannot be written \(.*\); choose another out"):
        finish(tmp_path / "file/out")


@pytest.mark.parametrize(
    ("out", "input_"),
    [
        ("m", "m"),
        ("m/inside", "m"),
        ("m/deep/inside", "m"),
        (".", "m"),
        ("m/../m", "m"),
        ("link", "m"),
        ("m", "m/model.safetensors"),
        ("link/inside", "m"),
    ],
)
def test_an_output_in_or_over_an_input_is_refused(out, input_, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m/model.safetensors").write_bytes(b"")
    (tmp_path / "link").symlink_to("m")
    problems = output_problems(tmp_path / out, [tmp_path / input_], 1, overwrite=True)
    assert len(problems) == 1
    assert "the output would be inside the input" in problems[0]
    assert output_problems(tmp_path / "m2", [tmp_path / input_], 1, overwrite=True) == []


def test_a_bare_file_does_not_forbid_its_neighbourhood(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"")
    assert output_problems(tmp_path / "out", [tmp_path / "x.safetensors"], 1, overwrite=False) == []


def test_a_disk_that_is_too_small_is_found_in_the_plan(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    (problem,) = output_problems(tmp_path / "a/b/out", [], 2_000_000_000, overwrite=False)
    assert "needs 2.00 GB, but only 0.00 GB are free" in problem
    assert output_problems(tmp_path / "out", [], 1000, overwrite=False) == []


def test_what_an_unfinished_run_has_allocated_is_not_needed_again(tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt), Staging(tmp_path / "out", PLAN) as staging:
        staging.allocate("model.safetensors", b"", 1 << 20)
        raise KeyboardInterrupt
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert output_problems(tmp_path / "out", [], 1 << 20, overwrite=False) == []


def test_the_root_folder_is_an_output_that_exists():
    (problem,) = output_problems(Path("/"), [], 1, overwrite=False)
    assert "exists already" in problem


def test_an_output_that_appears_while_a_run_writes_is_not_taken_away(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(WeightopsError, match="exists already"), Staging(out, PLAN) as staging:
        staging.allocate("model.safetensors", b"head", 4)
        finish(tmp_path / "other")
        (tmp_path / "other").rename(out)
        staging.commit()
    assert tiny.files_of(out) == WRITTEN


def test_notes_that_appear_in_the_old_output_while_a_run_writes_are_kept(tmp_path):
    out = tmp_path / "out"
    finish(out)
    with pytest.raises(WeightopsError, match="mine.md"), Staging(out, PLAN, overwrite=True) as staging:
        staging.allocate("model.safetensors", b"head", 4)
        (out / "mine.md").write_text("mine")
        staging.commit()
    assert tiny.files_of(out) == WRITTEN | {"mine.md": b"mine"}


def planted(folder: Path, how: str, elsewhere: Path) -> None:
    """A staging folder as somebody else would prepare it."""
    elsewhere.mkdir()
    if how == "a link":
        folder.symlink_to(elsewhere)
        return
    folder.mkdir(mode=0o700)
    if how == "open to all":
        folder.chmod(0o777)
    elif how == "open to the group":
        folder.chmod(0o770)
    elif how == "a file":
        folder.rmdir()
        folder.write_text("")
    else:
        os.chown(folder, 12345, 12345)


@pytest.mark.parametrize("how", ["a link", "open to all", "open to the group", "a file", "another user's"])
def test_a_staging_folder_that_others_may_have_prepared_is_refused(how, tmp_path):
    if how == "another user's" and os.geteuid():
        pytest.skip("only root can give a folder away")
    planted(tmp_path / ".out.weightops", how, tmp_path / "elsewhere")
    with pytest.raises(WeightopsError, match=r"\.out\.weightops: .*remove it|cannot be written"):
        finish(tmp_path / "out")
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["lock", "journal.jsonl", "plan.json", "model/model.safetensors", "model/config.json"])
def test_a_link_in_the_staging_folder_is_not_followed(name, tmp_path):
    staging = start(tmp_path / "out")
    (tmp_path / "secret").write_text("secret")
    (staging.folder / name).unlink(missing_ok=True)
    (staging.folder / name).symlink_to(tmp_path / "secret")
    with pytest.raises(WeightopsError, match=f"{name}: is a link"), Staging(tmp_path / "out", PLAN) as resumed:
        resumed.done()
        resumed.allocate("model.safetensors", b"head", 8)
        resumed.write("config.json", b"{}")
        resumed.commit()
    assert (tmp_path / "secret").read_text() == "secret"
    assert not (tmp_path / "out").exists()


def test_the_staging_folder_is_closed_to_others_and_the_output_is_as_open_as_any_folder(tmp_path):
    staging = start(tmp_path / "out")
    assert staging.folder.stat().st_mode & 0o777 == 0o700
    finish(tmp_path / "out")
    (tmp_path / "folder").mkdir()
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "folder").stat().st_mode


def test_what_was_put_into_the_staging_folder_since_a_kill_does_not_come_out(tmp_path):
    staging = start(tmp_path / "out")
    (staging.model / "modeling_x.py").write_text("evil")
    (staging.model / "deep/er").mkdir(parents=True)
    (staging.model / "link").symlink_to("/etc/passwd")
    with open(staging.model / "model.safetensors", "ab") as stream:
        stream.write(b"more than its size")
    finish(tmp_path / "out")
    assert tiny.files_of(tmp_path / "out") == WRITTEN
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted({n.split("/")[0] for n in WRITTEN})
