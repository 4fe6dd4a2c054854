"""Parts under ``accelerate launch``: two processes for each part, and one killed."""

import json
import re
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import tiny_parts
from tiny_chat import write_chat_model

from weightops.errors import WeightopsError
from weightops.recipes.launchers.in_this_process import InThisProcess
from weightops.recipes.launchers.with_accelerate import WithAccelerate
from weightops.recipes.routines.disperse_then_merge import run


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_chat_model(tmp_path_factory.mktemp("base"))


def workers_of(job):
    """The processes that train by a job file, without those that started them."""
    pids = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        words = process.info["cmdline"] or []
        if str(job) in words and "weightops.recipes.part_worker" in words and "accelerate.commands.launch" not in words:
            pids.append(process.info["pid"])
    return pids


@pytest.mark.slow
def test_each_part_is_trained_by_two_processes_and_one_that_is_killed_is_named_with_the_end_of_its_log(base, tmp_path):
    recipe = tiny_parts.parts_recipe(base, tmp_path, parts=2, epochs=60, launch=WithAccelerate(processes=2))
    parts = tmp_path / "out-parts"
    most = []

    def workers():
        pids = workers_of(parts / ".part-1.run" / "job.json")
        most.append(len(pids))
        return pids

    with tiny_parts.killing(parts, 1, 1, workers) as killed:
        run(recipe, tmp_path / "out")
    assert len(killed) == 1
    assert max(most) == 2
    first, second = json.loads((parts / "report.json").read_text())["parts"]
    log = re.escape(str(parts / ".part-1.run" / "log"))
    # Which comes first is chance: the end of the killed process, or what the other one says of its lost connection.
    ended = rf"its processes ended with exit code 1; {log} ends: .+|RuntimeError: .*"
    assert re.match(f"part 1 of 0 to 1: ({ended})", second["problem"])
    assert (first["share_of_merge"], second["share_of_merge"]) == (1.0, 0.0)
    assert not workers_of(parts / ".part-1.run" / "job.json")
    run(replace(recipe, launch=InThisProcess()), tmp_path / "alone")
    alone = json.loads((tmp_path / "alone-parts" / "report.json").read_text())["parts"][0]
    assert first["losses"][:3] == pytest.approx(alone["losses"][:3], rel=1e-4)
    assert first["losses"] == pytest.approx(alone["losses"], rel=0.05)


def test_the_command_is_accelerates_with_its_configuration_or_a_number_of_processes():
    job = Path("/parts/.part-0.run/job.json")
    start, end = ["-m", "accelerate.commands.launch"], ["-m", "weightops.recipes.part_worker", str(job)]
    for launcher, words in (
        (WithAccelerate(), []),
        (WithAccelerate(processes=1), ["--num_machines", "1", "--num_processes", "1"]),
        (WithAccelerate(processes=2), ["--num_machines", "1", "--num_processes", "2", "--multi_gpu"]),
        (WithAccelerate("fsdp.yaml"), ["--config_file", "fsdp.yaml"]),
    ):
        command = launcher.command(job)
        assert command[1:3] == start
        assert command[3:5] == ["--main_process_port", "0"]
        assert command[5:] == [*words, *end]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (None, r"launch.config: .*mine.yaml: cannot be read \(No such file or directory\); write it with accelerate"),
        ("num_machines: 2", r"launch.config: .*mine.yaml: is for 2 machines, .*; use with_ray for several"),
        ("[1]", r"launch.config: .*mine.yaml: holds no keys and values; write it with accelerate config"),
        ("a: b: c", r"launch.config: .*mine.yaml: cannot be read \(mapping values are not allowed here"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_said_before_anything_starts(tmp_path, text, problem):
    if text is not None:
        (tmp_path / "mine.yaml").write_text(text)
    launcher = WithAccelerate(str(tmp_path / "mine.yaml"))
    with pytest.raises(WeightopsError, match=problem), launcher.ready(tmp_path, []):
        pass
