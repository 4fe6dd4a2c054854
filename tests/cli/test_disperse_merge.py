"""``weightops disperse-merge`` is ``weightops train disperse-then-merge``, and nothing else."""

import json

import tiny_models as tiny
from click.testing import CliRunner
from tiny_chat import write_chat_model

from weightops.cli import main
from weightops.cli.disperse_merge import command
from weightops.cli.train import command as train


def test_it_has_the_options_of_train_and_writes_the_same(tmp_path):
    assert [each.name for each in command.params] == [each.name for each in train.params if each.name != "recipe"]
    base = write_chat_model(tmp_path / "base")
    rows = [json.dumps({"prompt": f"what is {number}?", "completion": "safe"}) for number in range(8)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    sets = [f"--set=base={base}", f"--set=data.files={tmp_path / 'rows.jsonl'}", "--set=disperse.parts=2"]
    for name, words in (("short", ["disperse-merge"]), ("long", ["train", "disperse-then-merge"])):
        done = CliRunner().invoke(main, [*words, *sets, "--set=data.held_out=0", "--out", str(tmp_path / name)])
        assert done.exit_code == 0, done.output
    short, long = (tiny.files_of(tmp_path / name)["model.safetensors"] for name in ("short", "long"))
    assert short == long
