"""Parts on a real Ray cluster of two workers on this machine, some of them killed while they train."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_parts
import torch
from ray_clusters import two_nodes
from tiny_chat import write_chat_model

from weightops.errors import WeightopsError
from weightops.recipes.launchers.in_this_process import InThisProcess
from weightops.recipes.launchers.with_ray import WithRay
from weightops.recipes.routines.disperse_then_merge import run


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_chat_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def cluster():
    with two_nodes(1) as address:
        yield address


def workers_of(parts, number):
    """The processes that a part's log names; none of a log that is not there."""
    try:
        log = (parts / f".part-{number}.run" / "log").read_text()
    except OSError:
        return []
    return [int(pid) for pid in re.findall(r"process (\d+)", log)]


def begun(stderr):
    """How often each part began."""
    numbers = re.findall(r"^part (\d) of 0 to \d: process \d+", stderr, re.MULTILINE)
    return {int(number): numbers.count(number) for number in numbers}


def adapters(folder):
    return [file.read_bytes() for file in sorted(folder.glob("part-*/adapter_model.safetensors"))]


@pytest.mark.slow
def test_a_killed_workers_part_runs_again_alone_and_all_bits_are_those_of_one_process(base, cluster, tmp_path, capfd):
    recipe = tiny_parts.parts_recipe(base, tmp_path, parts=3, epochs=40, launch=WithRay(cluster))
    parts = tmp_path / "out-parts"
    with tiny_parts.killing(parts, 1, 1, lambda: workers_of(parts, 1)) as killed:
        run(recipe, tmp_path / "out")
    stderr = capfd.readouterr().err
    assert len(killed) == 1
    assert begun(stderr) == {0: 1, 1: 2, 2: 1}
    assert re.search(r"part 1 of 0 to 2: its worker died \(.+\); it begins again, try 2", stderr)
    assert torch.get_num_threads() == 1  # as many as each part has processors
    run(replace(recipe, launch=InThisProcess()), tmp_path / "alone")
    assert adapters(parts) == adapters(tmp_path / "alone-parts")
    assert (tmp_path / "out/model.safetensors").read_bytes() == (tmp_path / "alone/model.safetensors").read_bytes()
    assert sorted(path.name for path in parts.iterdir()) == ["part-0", "part-1", "part-2", "report.json"]


@pytest.mark.slow
def test_a_part_whose_workers_keep_dying_is_named_and_the_others_are_merged(base, cluster, tmp_path):
    recipe = tiny_parts.parts_recipe(base, tmp_path, parts=2, epochs=60, launch=WithRay(cluster, tries=2))
    parts = tmp_path / "out-parts"
    with tiny_parts.killing(parts, 0, 2, lambda: workers_of(parts, 0)) as killed:
        done = run(recipe, tmp_path / "out")
    assert len(killed) == 2
    first, second = json.loads((parts / "report.json").read_text())["parts"]
    assert re.match(r"part 0 of 0 to 1: its worker died 2 times \(.+\); .*/\.part-0\.run/log ends: ", first["problem"])
    assert (first["share_of_merge"], second["share_of_merge"]) == (0.0, 1.0)
    assert set(done.measured) == {"base", "part 1", "merged"}
    run(replace(recipe, launch=InThisProcess()), tmp_path / "out", overwrite=True)  # it resumes
    assert not [path for path in parts.iterdir() if path.name.startswith(".")]


@pytest.mark.slow
def test_what_a_node_lacks_is_named_before_anything_starts(base, cluster, tmp_path, monkeypatch):
    ray = sys.modules["ray"]
    with WithRay(cluster).ready(tmp_path / "out-parts", [base]):
        assert ray.is_initialized()
    assert not ray.is_initialized()
    for launcher, models, problem in (
        (WithRay(cluster), [Path("/not/shared")], r"does not see /not/shared; give all nodes the same folders"),
        (WithRay(cluster, cpus=4096), [], r"no node of the Ray cluster has 4096 CPUs for a part; ask for fewer"),
    ):
        with pytest.raises(WeightopsError, match=problem), launcher.ready(tmp_path / "out-parts", models):
            pass
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.1")
    with pytest.raises(WeightopsError) as caught, WithRay(cluster).ready(tmp_path / "out-parts", []):
        pass
    assert "torch" in str(caught.value)
    assert all(re.search(r"has \w+ [\d.]+, and this machine has 0.1; install", line) for line in caught.value.problems)
    assert list(tmp_path.iterdir()) == []


STARTED = """
import sys
from pathlib import Path
import psutil
from weightops.recipes.launchers.with_ray import WithRay
with WithRay().ready(Path(sys.argv[1]), []):
    started = psutil.Process().children(recursive=True)
    sockets = [each for one in [psutil.Process(), *started] for each in one.net_connections("tcp")]
print(*(each.laddr.ip for each in sockets if each.status == psutil.CONN_LISTEN))
print("left", [one.pid for one in started if one.is_running() and one.status() != psutil.STATUS_ZOMBIE])
"""


@pytest.mark.slow
def test_without_a_cluster_one_is_started_that_only_this_machine_reaches_and_that_leaves_nothing(tmp_path):
    """In a process of its own, because what Ray listens to is decided when it is imported."""
    pytest.importorskip("ray", reason="needs the extra ray")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-c", STARTED, str(tmp_path / "out-parts")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "no Ray cluster is named: started one on this machine, with " in done.stderr
    listening, left = done.stdout.splitlines()
    assert listening
    assert set(listening.split()) <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
    assert left == "left []"


def test_what_cannot_be_a_cluster_is_said(monkeypatch, tmp_path):
    before = dict(os.environ)
    monkeypatch.setitem(sys.modules, "ray", None)
    for address, problem in (
        ("ray://host:1", "launch.address: ray://host:1: run on a node of the cluster, and write host:port or auto"),
        (None, "launch: ray is not installed; pip install 'weightops[ray]'"),
    ):
        with pytest.raises(WeightopsError) as caught, WithRay(address).ready(tmp_path, []):
            pass
        assert caught.value.problems == (problem,)
    assert dict(os.environ) == before


def test_a_cluster_that_does_not_answer_is_said_in_one_line(tmp_path):
    pytest.importorskip("ray", reason="needs the extra ray")
    with pytest.raises(WeightopsError) as caught, WithRay("127.0.0.1:1").ready(tmp_path, []):
        pass
    assert re.match(
        r"launch: no Ray cluster answers at 127.0.0.1:1 \(.+\); start one with ray start", str(caught.value)
    )
    assert len(caught.value.problems) == 1
