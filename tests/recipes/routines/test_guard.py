import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_chat import write_chat_model

import weightops
from weightops.algebra.opening import open_all
from weightops.errors import WeightopsError
from weightops.guard.card import GuardCard
from weightops.guard.judge import judge
from weightops.guard.metrics import score
from weightops.guard.presets import open_guard
from weightops.output.save import save
from weightops.recipes.floor.settings import Data, Training
from weightops.recipes.routines.guard import GuardRecipe, run, teacher_onset, train
from weightops.recipes.updates.full import Full
from weightops.recipes.updates.lora import Lora
from weightops.rows.labelled import LabelledText

ROWS = [LabelledText(f"{word} {number}", word == "no") for number in range(12) for word in ("yes", "no")]
NOWHERE = Data(("rows.jsonl",))
HARD = Training(lr=1e-2, epochs=24)


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory):
    return write_chat_model(tmp_path_factory.mktemp("chat"))


def f1(folder):
    card = GuardCard.read(folder)
    return score([row.unsafe for row in ROWS], judge(folder, [row.text for row in ROWS]), card.threshold).f1


def test_a_guard_learns_its_rows_and_says_how_to_be_asked(chat_model, tmp_path, capfd):
    done = train(GuardRecipe(str(chat_model), NOWHERE, training=HARD), ROWS, tmp_path / "guard")
    assert sum(done.losses[-3:]) < 0.5 * sum(done.losses[:3])
    card = GuardCard.read(tmp_path / "guard")
    assert card.labels == ("safe", "unsafe")
    assert "safe or unsafe" in card.system
    assert f1(tmp_path / "guard") > 0.9
    bar = [line for line in capfd.readouterr().err.replace("\r", "\n").splitlines() if line.strip()]
    assert all(line.startswith(("training the guard", "judging")) for line in bar)


def test_new_labels_train_their_own_rows_and_no_others(chat_model, tmp_path):
    recipe = GuardRecipe(str(chat_model), NOWHERE, labels=("<OK>", "<BAD>"), new_labels=True, training=HARD)
    train(recipe, ROWS, tmp_path / "guard")
    card = GuardCard.read(tmp_path / "guard")
    before, after = (load_file(folder / "model.safetensors") for folder in (chat_model, tmp_path / "guard"))
    old, new = before["model.embed_tokens.weight"], after["model.embed_tokens.weight"]
    assert card.label_ids == (len(old), len(old) + 1)
    assert torch.equal(new[: len(old)], old)
    assert not torch.equal(new[len(old)], new[len(old) + 1])
    assert f1(tmp_path / "guard") > 0.9


def test_an_adapter_guard_is_asked_as_base_plus_adapter(chat_model, tmp_path):
    training = replace(HARD, update=Lora(4, 8.0))
    train(GuardRecipe(str(chat_model), NOWHERE, training=training), ROWS, tmp_path / "guard")
    names = {path.name for path in (tmp_path / "guard").iterdir()}
    assert names == {"README.md", "adapter_config.json", "adapter_model.safetensors", "guard.json", "training.json"}
    both = f"{chat_model}+{tmp_path / 'guard'}"
    probabilities = open_guard(both).probabilities([row.text for row in ROWS])
    assert score([row.unsafe for row in ROWS], probabilities).f1 > 0.9
    whole = weightops.open(both).save(tmp_path / "whole", progress=False)
    assert f1(whole) > 0.9
    half = weightops.open(chat_model) + 0.5 * weightops.open_adapter(tmp_path / "guard")
    cards = [(folder / "guard.json").read_bytes() for folder in (half.save(tmp_path / "half", progress=False), whole)]
    assert cards[0] == cards[1] == (tmp_path / "guard/guard.json").read_bytes()
    config = json.loads((tmp_path / "guard" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(chat_model)
    assert config["target_modules"] == sorted(config["target_modules"])
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "guard").iterdir()}
    assert modes == {(tmp_path / "guard").stat().st_mode & 0o666}


@pytest.mark.parametrize("update", [Full(), Lora(4, 8.0)], ids=["full", "lora"])
def test_what_a_guard_learnt_is_handed_to_another_model(chat_model, tmp_path, update):
    train(GuardRecipe(str(chat_model), NOWHERE, training=replace(HARD, update=update)), ROWS, tmp_path / "guard")
    guard = f"{chat_model}+{tmp_path / 'guard'}" if not update.whole else tmp_path / "guard"
    opened = open_all([guard, chat_model, tuned(chat_model, tmp_path / "target")])
    composition = weightops.compose_guard(*opened)
    assert str(guard) in json.dumps(dict(composition.plan.recipe))
    save(composition.plan, composition.package, tmp_path / "composed", progress=False)
    assert f1(tmp_path / "composed") > 0.9


def test_new_labels_are_handed_over_with_their_rows_and_only_so(chat_model, tmp_path):
    recipe = GuardRecipe(str(chat_model), NOWHERE, labels=("<OK>", "<BAD>"), new_labels=True, training=HARD)
    train(recipe, ROWS, tmp_path / "guard")
    opened = open_all([tmp_path / "guard", chat_model, tuned(chat_model, tmp_path / "target")])
    with pytest.raises(
        WeightopsError,
        match=r"'<OK>' is not one token of the target; add its token and copy its row with labels='<OK>,<BAD>'",
    ):
        weightops.compose_guard(*opened)
    composition = weightops.compose_guard(*opened, labels=("<OK>", "<BAD>"))
    save(composition.plan, composition.package, tmp_path / "composed", progress=False)
    assert GuardCard.read(tmp_path / "composed").labels == ("<OK>", "<BAD>")
    assert f1(tmp_path / "composed") > 0.9


def test_label_rows_that_an_adapter_changes_are_not_copied_from_its_base(chat_model, tmp_path):
    lora = Lora(2, targets=("embed_tokens",))
    recipe = GuardRecipe(str(chat_model), NOWHERE, training=Training(lr=1e-2, epochs=1, update=lora))
    train(recipe, ROWS, tmp_path / "guard")
    opened = open_all([f"{chat_model}+{tmp_path / 'guard'}", chat_model, tuned(chat_model, tmp_path / "target")])
    with pytest.raises(WeightopsError, match=r"labels: an adapter of .* changes model.embed_tokens.weight"):
        weightops.compose_guard(*opened, labels=("safe", "unsafe"))


def tuned(base, out):
    """Another model of the same base: every matrix of its layers moved a little."""
    shutil.copytree(base, out)
    draw = torch.Generator().manual_seed(7)
    moved = {
        name: (t.float() + 0.005 * torch.randn(t.shape, generator=draw)).to(t.dtype) if ".layers." in name else t
        for name, t in load_file(base / "model.safetensors").items()
    }
    save_file(moved, out / "model.safetensors", {"format": "pt"})
    return out


def test_every_prefix_is_trained_on_and_held_out_rows_are_whole_texts(chat_model, tmp_path):
    rows = [LabelledText("good day " * 5, False), LabelledText("fine then " + "bad " * 5, True, 10)] * 4
    recipe = GuardRecipe(
        str(chat_model), Data(("x.jsonl",), held_out=0.25), prefix_chars=10, training=Training(epochs=1)
    )
    done = train(recipe, rows, tmp_path / "guard")
    assert set(done.measured) == {"loss", "accuracy"}
    log = json.loads((tmp_path / "guard" / "training.json").read_text())
    assert 6 * 3 <= log["rows"] <= 6 * 5
    assert log["learnt_tokens"] == log["rows"]  # a guard learns one label a row


def test_a_teachers_first_crossing_is_the_onset(chat_model, tmp_path):
    GuardCard("Is it?", ("safe", "unsafe"), (20, 30), 1e-12).write(chat_model)  # calls everything unsafe
    recipe = GuardRecipe(str(chat_model), NOWHERE, prefix_chars=4, teacher=str(chat_model))
    assert teacher_onset(recipe)("abcdefgh") == 3
    GuardCard("Is it?", ("safe", "unsafe"), (20, 30), 1 - 1e-12).write(chat_model)  # and now nothing
    assert teacher_onset(recipe)("abcdefgh") is None


def test_labels_of_several_tokens_are_refused(chat_model, tmp_path):
    with pytest.raises(WeightopsError, match="one token"):
        train(GuardRecipe(str(chat_model), NOWHERE, labels=("harmless", "harmful")), ROWS, tmp_path / "guard")


def test_every_fault_of_the_settings_is_said_before_anything_is_loaded(tmp_path):
    recipe = GuardRecipe(
        "no/model",
        NOWHERE,
        labels=("a", "a"),
        new_labels=True,
        prefix_chars=-1,
        training=Training(lr=0, update=Lora(0)),
    )
    with pytest.raises(WeightopsError) as error:
        run(recipe, tmp_path / "guard")
    message = "\n".join(error.value.problems)
    assert all(
        name in message for name in ("labels:", "new_labels:", "prefix_chars:", "training.lr:", "training.update.rank:")
    )


def test_rows_of_one_label_are_refused_before_a_model_is_loaded(tmp_path):
    rows = [row for row in ROWS if row.unsafe] + [LabelledText("corrects itself", False, 3)]
    with pytest.raises(WeightopsError, match="all 12 rows to train on are labelled unsafe; add rows that are safe"):
        train(GuardRecipe("no/such-model", NOWHERE), rows, tmp_path / "guard")


def test_data_may_use_the_recipes_own_words_and_no_others(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "a", "label": "benign"}\n{"text": "b", "label": "harmful"}\n')
    recipe = GuardRecipe(str(tmp_path / "none"), Data((str(file),)), labels=("benign", "harmful"))
    with pytest.raises(WeightopsError, match="none: no such file or folder"):
        run(recipe, tmp_path / "guard")
    with pytest.raises(WeightopsError) as caught:
        run(replace(recipe, labels=("safe", "unsafe")), tmp_path / "guard")
    assert [problem.partition(": ")[0] for problem in caught.value.problems] == [f"{file}, line 1", f"{file}, line 2"]


def test_data_with_other_words_than_the_guards_is_read_and_that_is_reported(tmp_path, capsys):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "a", "label": "safe"}\n{"text": "b", "label": "unsafe"}\n')
    recipe = GuardRecipe(str(tmp_path / "none"), Data((str(file),)), labels=("benign", "harmful"))
    for labels, note in ((("benign", "harmful"), True), (("safe", "unsafe"), False)):
        with pytest.raises(WeightopsError, match="none: no such file or folder"):
            run(replace(recipe, labels=labels), tmp_path / "guard")
        expected = "labels: the data has safe and unsafe; the guard learns to answer benign and harmful for them"
        assert (expected in capsys.readouterr().err) == note
