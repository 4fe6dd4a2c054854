import pytest
import torch
from safetensors.torch import load_file
from tiny_chat import write_chat_model

from weightops.errors import WeightopsError
from weightops.guard.card import GuardCard
from weightops.guard.judge import judge
from weightops.guard.metrics import score
from weightops.recipes.guard import GuardRecipe, run, teacher_onset, train
from weightops.recipes.prefixes import Example
from weightops.recipes.settings import Data, Lora, Training

ROWS = [Example(f"{word} {number}", word == "no") for number in range(12) for word in ("yes", "no")]
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


def test_every_prefix_is_trained_on_and_held_out_rows_are_whole_texts(chat_model, tmp_path):
    rows = [Example("good day " * 5, False), Example("fine then " + "bad " * 5, True, 10)] * 4
    recipe = GuardRecipe(
        str(chat_model), Data(("x.jsonl",), held_out=0.25), prefix_chars=10, training=Training(epochs=1)
    )
    done = train(recipe, rows, tmp_path / "guard")
    assert set(done.measured) == {"loss", "accuracy"}
    import json

    assert 6 * 3 <= json.loads((tmp_path / "guard" / "training.json").read_text())["rows"] <= 6 * 5


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
        "no/model", NOWHERE, labels=("a", "a"), new_labels=True, prefix_chars=-1, training=Training(lr=0, lora=Lora(0))
    )
    with pytest.raises(WeightopsError) as error:
        run(recipe, tmp_path / "guard")
    said = "\n".join(error.value.problems)
    assert all(
        name in said for name in ("labels:", "new_labels:", "prefix_chars:", "training.lr:", "training.lora.rank:")
    )
