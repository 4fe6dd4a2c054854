"""Where a config keeps the text model and its sizes; what transformers reads is checked in test_every_architecture."""

from __future__ import annotations

import pytest

from weightops.anatomy import config_keys
from weightops.anatomy.layers_config import relayer_config
from weightops.anatomy.vocabulary import with_vocabulary

TEXT = {"num_hidden_layers": 3, "vocab_size": 8, "max_position_embeddings": 64, "tie_word_embeddings": True}
PATHS = [
    *((), ("text_config",), ("llm_config",), ("language_config",), ("thinker_config", "text_config")),
    ("thinker_config", "llm_config"),
]


def inside(path: tuple[str, ...], text: dict) -> dict:
    """A config that holds a text model under a path of keys."""
    return {path[0]: inside(path[1:], text), "vision_config": {"num_hidden_layers": 9}} if path else text


@pytest.mark.parametrize("path", PATHS)
def test_every_question_finds_the_text_model_wherever_it_is(path):
    config = inside(path, TEXT)
    assert config_keys.text_path(config) == path
    assert config_keys.text_part(config) == TEXT
    assert config_keys.layer_count(config) == 3
    assert config_keys.vocabulary_size(config) == 8
    assert config_keys.max_positions(config) == 64
    assert config_keys.ties_embeddings(config) is True


@pytest.mark.parametrize("path", PATHS)
def test_what_is_changed_in_the_text_model_is_changed_there_alone(path):
    config = inside(path, TEXT)
    assert relayer_config(config, [0, 2]) == inside(path, {**TEXT, "num_hidden_layers": 2})
    assert {**config, **with_vocabulary(config, 9)} == inside(path, {**TEXT, "vocab_size": 9})


def test_a_size_left_to_the_class_is_written_into_the_text_model():
    assert with_vocabulary({"thinker_config": {"text_config": {"a": 1}}, "b": 2}, 9) == {
        "thinker_config": {"text_config": {"a": 1, "vocab_size": 9}}
    }


def test_rows_of_chatglm_are_its_padded_size():
    config = {"padded_vocab_size": 16, "num_layers": 2, "seq_length": 32}
    assert config_keys.vocabulary_size(config) == 16
    assert with_vocabulary(config, 24) == {"padded_vocab_size": 24}
    assert (config_keys.layer_count(config), config_keys.max_positions(config)) == (2, 32)


@pytest.mark.parametrize("value", [None, "8", True, -1, 0, 8.0, [8]])
def test_a_size_that_is_no_positive_whole_number_is_not_taken(value):
    assert config_keys.vocabulary_size({"vocab_size": value}) is None
    assert config_keys.layer_count({"num_hidden_layers": value}) is None


def test_the_whole_model_decides_on_tying_before_its_text_model():
    config = {"tie_word_embeddings": False, "text_config": {"tie_word_embeddings": True}}
    assert config_keys.ties_embeddings(config) is False
    assert config_keys.ties_embeddings({}) is None


def test_parts_inside_parts_without_end_are_not_followed():
    config: dict = {}
    for _ in range(900):
        config = {"text_config": config}
    assert len(config_keys.text_path(config)) == 3
