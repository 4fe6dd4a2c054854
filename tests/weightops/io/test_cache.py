import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from weightops.errors import WeightopsError
from weightops.io.cache import cache_folder, cached, entry_name, stamp

FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WEIGHTOPS_CACHE", str(tmp_path / "cache"))


def test_the_folder_is_ours_then_xdgs_then_the_homes(monkeypatch, tmp_path):
    monkeypatch.setenv("WEIGHTOPS_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("WEIGHTOPS_CACHE")
    assert cache_folder() == tmp_path / "xdg" / "weightops"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # the specification says to ignore it
    assert cache_folder() == tmp_path / "home" / ".cache" / "weightops"


def test_an_entry_is_made_once_and_whole():
    made = []

    def build(folder: Path) -> None:
        assert not (cache_folder() / "kind" / "entry").exists()  # nothing under the final name before the end
        made.append(folder)
        (folder / "inner").mkdir()
        (folder / "inner" / "file").write_text("content")

    first = cached("kind", "entry", build)
    assert cached("kind", "entry", build) == first == cache_folder() / "kind" / "entry"
    assert len(made) == 1
    assert (first / "inner" / "file").read_text() == "content"
    assert not made[0].exists()


def test_a_build_that_fails_leaves_nothing_and_the_next_one_starts_from_an_empty_folder():
    def fail(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cached("kind", "entry", fail)
    folder = cached("kind", "entry", lambda folder: (folder / "whole").write_text("whole"))
    assert [file.name for file in folder.iterdir()] == ["whole"]


def build_and_hang(folder: Path) -> None:
    (folder / "half").write_text("half")
    time.sleep(60)


def test_a_killed_build_leaves_nothing_that_looks_finished():
    final = cache_folder() / "kind" / "entry"
    process = FORK.Process(target=cached, args=("kind", "entry", build_and_hang))
    process.start()
    until(lambda: list(final.parent.rglob("half")))
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not final.exists()
    folder = cached("kind", "entry", lambda folder: (folder / "whole").write_text("whole"))  # the lock is free again
    assert [file.name for file in folder.iterdir()] == ["whole"]


def build_slowly(folder: Path) -> None:
    with (cache_folder() / "built").open("a") as log:
        log.write("x")
    time.sleep(0.3)
    (folder / "file").write_text("content")


def test_two_processes_build_an_entry_once():
    cache_folder().mkdir(exist_ok=True)
    processes = [FORK.Process(target=cached, args=("kind", "entry", build_slowly)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert (cache_folder() / "built").read_text() == "x"


def test_a_cache_that_cannot_be_written_is_one_line_with_a_remedy(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("WEIGHTOPS_CACHE", str(tmp_path / "file"))
    with pytest.raises(WeightopsError, match="WEIGHTOPS_CACHE") as caught:
        cached("kind", "entry", lambda folder: None)
    assert len(caught.value.problems) == 1
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", ["size", "time", "path", "version", "number"])
def test_a_stamp_changes_with_whatever_can_change_the_entry(tmp_path, change):
    file, copy = tmp_path / "a", tmp_path / "b"
    for each in (file, copy):
        each.write_text("content")
        os.utime(each, ns=(1, 1))
    before = stamp([file], 1)
    assert stamp([file], 1) == before
    if change == "size":
        file.write_text("contents")
        os.utime(file, ns=(1, 1))
    elif change == "time":
        os.utime(file, ns=(2, 2))
    files = {"path": [copy], "number": [file, file]}.get(change, [file])
    assert stamp(files, 2 if change == "version" else 1) != before


@pytest.mark.parametrize("name", ["../../etc", "a/b", "...", "", "ü" * 300])
def test_an_entry_name_is_a_plain_file_name(name):
    made = entry_name(name, "0" * 64)
    assert Path(made).name == made
    assert not made.startswith(".")
    assert len(made.encode()) < 128


def until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
