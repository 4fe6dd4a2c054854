"""``weightops cache``: what lies there is listed truly, and clearing removes that and nothing else."""

import fcntl
import json
import os

import pytest
from click.testing import CliRunner

from weightops.cli.cache import command
from weightops.errors import WeightopsError
from weightops.io.cache import cached
from weightops.io.cache_entries import CacheEntry, clear, entries


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WEIGHTOPS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def sources(tmp_path):
    files = {name: tmp_path / f"{name}.gguf" for name in ("kept", "changed", "gone")}
    for name, file in files.items():
        file.write_text(name)
        cached("gguf", name, lambda folder: (folder / "weights").write_text("x" * 100), sources=[file])
    files["changed"].write_text("something else")
    files["gone"].unlink()
    return files


def run(*args, code=0, **more):
    result = CliRunner().invoke(command, [str(arg) for arg in args], **more)
    assert result.exit_code == code, result.output + str(result.exception)
    return result.output


def states():
    return {entry.name: entry.state for entry in entries()}


def test_entries_are_listed_with_source_size_and_whether_they_are_still_good(cache, sources):
    assert states() == {"gguf/kept": "valid", "gguf/changed": "stale", "gguf/gone": "stale"}
    lines = {line.split()[0]: line for line in run().splitlines()}
    assert str(sources["kept"]) in lines["gguf/kept"]
    assert "100 B" in lines["gguf/kept"]
    listed = json.loads(run("--json"))["entries"]
    assert {entry["name"]: entry["size"] for entry in listed} == dict.fromkeys(states(), 100)
    cached("pickled", "old", lambda folder: None)
    (cache / "pickled/.old.sources").write_text("{")
    assert states()["pickled/old"] == "unknown"


def test_clearing_asks_and_removes_what_was_chosen_alone(cache, sources):
    run("clear", "--stale", input="n\n", code=1)
    assert len(entries()) == 3
    assert "removed 2, 200 B" in run("clear", "--stale", "--yes")
    assert states() == {"gguf/kept": "valid"}
    run("clear", "kept", input="y\n")
    assert states() == {}
    assert sources["kept"].exists()
    assert run() == f"{cache}: empty\n"
    assert run("clear", "--all", "--yes") == "nothing to clear\n"


@pytest.mark.parametrize("args", [[], ["a", "--all"], ["--stale", "--all"]])
def test_one_choice_is_made(args):
    run("clear", *args, "--yes", code=2)


def test_a_name_that_is_no_entry_is_refused_and_nothing_is_removed(sources, tmp_path):
    for name in ("other", "../cache/gguf/kept", "gguf/../gguf/kept", str(sources["kept"]), ""):
        result = CliRunner().invoke(command, ["clear", "kept", name, "--yes"])
        assert isinstance(result.exception, WeightopsError)
    assert len(entries()) == 3


def test_nothing_outside_the_cache_is_removed_and_no_link_is_followed(cache, sources, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    (cache / "gguf/link").symlink_to(outside)
    (cache / "pickled").symlink_to(tmp_path)  # a whole kind that leads out
    (cache / "gguf/kept/inner").symlink_to(outside)
    (cache / "other").mkdir()  # not ours
    (cache / "other/entry").mkdir()
    assert set(states()) == {"gguf/kept", "gguf/changed", "gguf/gone"}
    run("clear", "--all", "--yes")
    assert (outside / "precious").exists()
    assert (cache / "gguf/link").is_symlink()
    assert (cache / "other/entry").exists()
    for name in ("../outside", "pickled/outside", "gguf/../../outside"):
        with pytest.raises(WeightopsError, match="not in the cache"):
            clear([CacheEntry(name, outside, (), 0, 0.0, "valid")])
    assert (outside / "precious").exists()


def test_what_is_being_made_is_left_and_what_a_killed_run_left_is_cleared(cache, sources):
    for name in ("busy", "killed"):
        (cache / f"gguf/.{name}.building").mkdir()
        (cache / f"gguf/.{name}.building/half").write_text("x")
    lock = os.open(cache / "gguf/.busy.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert (states()["gguf/busy"], states()["gguf/killed"]) == ("in use", "unfinished")
    assert "gguf/busy: in use, left" in run("clear", "--all", "--yes")
    assert states() == {"gguf/busy": "in use"}
    os.close(lock)
    run("clear", "--stale", "--yes")
    assert states() == {}
    assert not list((cache / "gguf").glob("*.building"))


def test_entries_are_completed(sources):
    from click.shell_completion import ShellComplete

    shell = ShellComplete(command, {}, "weightops cache", "_X")
    assert {item.value for item in shell.get_completions(["clear"], "gguf/k")} == {"gguf/kept"}


def test_a_cleared_model_is_made_again(sources):
    run("clear", "--all", "--yes")
    again = cached("gguf", "kept", lambda folder: (folder / "weights").write_text("new"), sources=[sources["kept"]])
    assert (again / "weights").read_text() == "new"
    assert states() == {"gguf/kept": "valid"}
