import json

import pytest
from tiny_chat import write_chat_model

from weightops.algebra.loading import load
from weightops.errors import WeightopsError
from weightops.recipes.floor.settings import Data, Training
from weightops.recipes.routines.target import TargetRecipe, blocks, python_texts, row_texts, run


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory):
    return write_chat_model(tmp_path_factory.mktemp("chat"))


def test_blocks_are_pieces_of_the_texts_each_once_and_of_one_length(chat_model):
    _, tokenizer = load(chat_model, "float32")
    texts = [f"{number * 7919} is text {number}, with more to say {number**3}" for number in range(40)]
    recipe = TargetRecipe(str(chat_model), blocks=10, tokens=16)
    made = blocks(tokenizer, texts, recipe)
    ids = [token for text in texts for token in tokenizer.encode(text)]
    places = [start for start in range(0, len(ids), 16) if ids[start : start + 16] in made]
    assert len(made) == len(places) == 10
    assert all(len(block) == 16 for block in made)
    assert made == blocks(tokenizer, texts, recipe)
    assert len(blocks(tokenizer, texts, TargetRecipe(str(chat_model), blocks=10**6, tokens=16))) == len(ids) // 16


def test_the_text_is_pythons_reference_and_library():
    texts = python_texts()
    assert any('The "with" statement' in text for text in texts)
    assert any(text.lstrip().startswith('"""Heap queue') for text in texts)
    assert sum(map(len, texts)) > 1_000_000


def test_a_target_learns_its_text(chat_model, tmp_path):
    recipe = TargetRecipe(str(chat_model), blocks=48, tokens=32, training=Training(lr=5e-3, epochs=2))
    done = run(recipe, tmp_path / "target")
    assert len(done.losses) == 12
    assert sum(done.losses[-3:]) < 0.95 * sum(done.losses[:3])
    assert (tmp_path / "target" / "model.safetensors").exists()
    assert not (tmp_path / "target" / "guard.json").exists()


def test_messages_go_through_the_models_chat_template(chat_model, tmp_path):
    _, tokenizer = load(chat_model, "float32")
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"messages": [{"role": "user", "content": "hi"}]}) + '\n{"text": "plain"}\n')
    assert row_texts(tokenizer, Data((str(file),))) == ["<|im_start|>user\nhi<|im_end|>\n", "plain"]
    file.write_text('{"other": 1}\n')
    with pytest.raises(WeightopsError, match=r"rows.jsonl, line 1: needs text"):
        row_texts(tokenizer, Data((str(file),)))
