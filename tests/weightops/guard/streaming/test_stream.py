"""Streams: every answer is that of the whole prefix read at once, at a cost that does not grow with it."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_chat import tiny_tokenizer

from weightops.errors import WeightopsError
from weightops.guard.card import GuardCard
from weightops.guard.judge import Guard
from weightops.guard.prompt import label_ids, system_text
from weightops.guard.streaming.kept import can_keep
from weightops.guard.streaming.stream import Stream, Streams, _blanks_divide, _Prompt

EXACT = 1e-5
"""fp32 models: the order of sums is all that differs."""

SHAPE = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16, "max_position_embeddings": 2048, "initializer_range": 0.2, 
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
}  # fmt: skip


def guard_of(model, tokenizer, **card):
    labels = ("safe", "unsafe")
    return Guard(model.eval(), tokenizer, GuardCard(system_text(labels), labels, label_ids(tokenizer, labels), **card))


def tiny(family="Llama", config="LlamaConfig", dtype=torch.float32, **shape):
    import transformers as tf

    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    config_settings = getattr(tf, config)(**(SHAPE | {"vocab_size": len(tokenizer)} | shape))
    return guard_of(getattr(tf, f"{family}ForCausalLM")(config_settings).to(dtype), tokenizer)


@pytest.fixture(scope="module")
def guard():
    return tiny()


MANY = "safe unsafe naïve 日本語テキスト 👩‍👩‍👧 е́ \r\n\n  is this  safe?! <|im_end|> 12345 a\u0301 한국어 " * 8

characters = st.one_of(
    st.sampled_from(["safe", "un", "<|im_", "end|>", " ", "  ", "\n", "e\u0301", "👩‍👩‍👧", "日本", "ᄒ", "ᅡ", "user"]),
    st.characters(exclude_categories=["Cs"]),
)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(characters, max_size=30).map("".join), min_size=1, max_size=8))
def test_each_answer_is_that_of_the_whole_prefix(guard, chunks):
    stream = Stream(guard)
    streamed = [stream.feed(chunk) for chunk in chunks]
    prefixes = ["".join(chunks[: end + 1]) for end in range(len(chunks))]
    np.testing.assert_allclose(streamed, guard.probabilities(prefixes), atol=EXACT)
    assert stream.characters == len(prefixes[-1])
    assert stream.tokens == len(guard.frame.rows(prefixes[-1:])[0]) - len(guard.frame.rows([""])[0])


@settings(max_examples=30, deadline=None)
@given(st.lists(characters, max_size=20).map("".join), st.lists(st.integers(0, 80), max_size=6))
def test_half_a_character_of_utf8_waits_for_the_rest(guard, text, cuts):
    data = text.encode()
    edges = sorted({0, len(data), *(min(cut, len(data)) for cut in cuts)})
    stream = Stream(guard)
    stream.feed(b"")
    for start, end in pairwise(edges):
        probability = stream.feed(data[start:end])
        whole = data[:end].decode(errors="ignore")  # an incomplete character at the end is all that is left out
        assert stream.characters == len(whole)
        assert probability == pytest.approx(guard.probabilities([whole])[0], abs=EXACT)
    assert stream.close() == pytest.approx(guard.probabilities([text])[0], abs=EXACT)


def test_what_is_no_text_is_read_as_the_replacement_character(guard):
    for chunks, text in [
        ([b"a\xff", b"b"], "a\ufffdb"),
        ([b"a\xe6\x97", "b"], "a\ufffdb"),
        (["a\ud83d", "\ude00b"], "a😀b"),
        (["a\ud83d", b"b"], "a\ufffdb"),
        (["a\ude00"], "a\ufffd"),
        ([b"a\xe6\x97"], "a\ufffd"),
        (["a\ud83d"], "a\ufffd"),
    ]:
        stream = Stream(guard)
        for chunk in chunks:
            stream.feed(chunk)
        assert stream.close() == pytest.approx(guard.probabilities([text])[0], abs=EXACT)
        assert stream.characters == len(text)


def test_a_long_text_in_small_chunks_is_the_same_and_only_its_end_is_run(guard):
    """Linear: tokens run a chunk are those of the chunk, the end of the prompt, and a boundary that moved."""
    text, run, forward = 2 * MANY, [], guard.model.forward

    def counted(*args, **kwargs):
        run.append(kwargs["input_ids"].shape[1])
        return forward(*args, **kwargs)

    stream = Stream(guard)
    guard.model.forward = counted
    try:
        for start in range(0, len(text), 50):
            stream.feed(text[start : start + 50])
    finally:
        del guard.model.forward
    assert stream.probability == pytest.approx(guard.probabilities([text])[0], abs=EXACT)
    assert max(run) < 50 * 5 + 30  # 50 characters, most of them some bytes
    assert sum(run) < 2 * stream.tokens
    assert stream.tokens > 1000


def test_a_long_chunk_is_run_in_blocks_and_is_the_same(guard):
    run, forward, text = [], guard.model.forward, 2 * MANY
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            guard.model,
            "forward",
            lambda *a, **k: (run.append(k["input_ids"].shape[1]), forward(*a, **k))[1],
            raising=False,
        )
        one, two = (streams := Streams(guard)).open(), streams.open()
        probabilities = streams.feed({one: text, two: text[:-5]})
    assert max(run) <= 512
    assert sum(run) > 1500
    np.testing.assert_allclose(list(probabilities.values()), guard.probabilities([text, text[:-5]]), atol=EXACT)


def test_many_streams_in_one_pass_answer_as_each_alone(guard):
    streams = Streams(guard, batch=4)
    texts = {streams.open(): MANY[at * 7 :][: 20 + 60 * at] for at in range(7)}
    so_far = dict.fromkeys(texts, "")
    rng = np.random.default_rng(0)
    while any(so_far[stream] != text for stream, text in texts.items()):
        news = {}
        for stream, text in texts.items():
            if rng.random() < 0.6:
                news[stream] = text[len(so_far[stream]) :][: rng.integers(0, 90)]
                so_far[stream] += news[stream]
        for stream, probability in streams.feed(news).items():
            assert probability == pytest.approx(guard.probabilities([so_far[stream]])[0], abs=EXACT)


def test_the_head_of_the_prompt_is_run_once_for_all_streams(guard):
    first = Stream(guard)
    first.feed("a")
    before = {
        layer: keys[:, : first._reader.head_length].clone() for layer, (keys, _) in first._reader.head.layers.items()
    }
    first.feed(MANY)
    second = Stream(guard)
    assert _tokens_run(second, "a") < first._reader.head_length
    for layer, keys in before.items():  # and no stream wrote into what they share
        torch.testing.assert_close(second._reader.head.layers[layer][0][:, : keys.shape[1]], keys, rtol=0, atol=0)


def _tokens_run(stream, text):
    run = []
    with pytest.MonkeyPatch.context() as patch:
        model = stream._reader.guard.model
        forward = model.forward
        patch.setattr(
            model, "forward", lambda *a, **k: (run.append(k["input_ids"].numel()), forward(*a, **k))[1], raising=False
        )
        stream.feed(text)
    return sum(run)


def test_once_unsafe_it_stays_reported_where_it_was(guard):
    chunks = [MANY[at : at + 23] for at in range(0, 460, 23)]
    alone = Stream(guard)
    streamed = [alone.feed(chunk) for chunk in chunks]
    threshold = float(np.median(streamed))
    first = next(at for at, probability in enumerate(streamed) if probability >= threshold)
    assert any(probability < threshold for probability in streamed[first + 1 :])  # it does go back below
    stream = Streams(guard, threshold=threshold).open()
    for at, chunk in enumerate(chunks):
        stream.feed(chunk)
        assert stream.flagged == (at >= first)
    prefix = "".join(chunks[: first + 1])
    assert stream.crossed_at.characters == len(prefix)
    assert stream.crossed_at.tokens == len(guard.frame.rows([prefix])[0]) - len(guard.frame.rows([""])[0])


@pytest.mark.parametrize(
    ("family", "config", "more"),
    [
        ("Qwen3", "Qwen3Config", {}),
        ("Mistral", "MistralConfig", {"sliding_window": 16}),
        ("Gemma2", "Gemma2Config", {"sliding_window": 16, "query_pre_attn_scalar": 16}),
        ("Gemma3", "Gemma3TextConfig", {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}),
        ("Granite", "GraniteConfig", {}),
    ],
)
def test_other_families_keep_too_even_with_a_window_far_shorter_than_the_text(family, config, more):
    guard = tiny(family, config, **more)
    streams = Streams(guard)
    assert not streams.reencodes
    one, two = streams.open(), streams.open()
    for end in range(60, 300, 60):
        probabilities = streams.feed({one: MANY[end - 60 : end], two: MANY[2 * end - 120 : 2 * end]})
        np.testing.assert_allclose(
            list(probabilities.values()), guard.probabilities([MANY[:end], MANY[: 2 * end]]), atol=EXACT
        )


@pytest.mark.parametrize(
    ("family", "config", "more"),
    [
        ("Mamba", "MambaConfig", {"head_dim": 16}),
        (
            "Llama4",
            "Llama4TextConfig",
            {"attention_chunk_size": 16, "intermediate_size_mlp": 64, "num_local_experts": 2},
        ),
    ],
)
def test_a_model_whose_state_cannot_be_cut_back_is_read_anew(family, config, more):
    guard = tiny(family, config, **more)
    streams = Streams(guard)
    assert streams.reencodes
    stream = streams.open()
    for end in range(40, 160, 40):
        probability = stream.feed(MANY[end - 40 : end])
        assert probability == pytest.approx(guard.probabilities([MANY[:end]])[0], abs=EXACT)


def test_a_model_that_keeps_wrongly_is_found_out(guard):
    """The trial compares numbers: a model that ignores positions once it has a cache does not pass."""
    rows, labels = guard.frame.rows(["", "a b"]), guard.card.label_ids
    assert can_keep(guard.model, rows, labels)
    with pytest.MonkeyPatch.context() as patch:
        forward = guard.model.forward
        patch.setattr(guard.model, "forward", lambda position_ids=None, **k: forward(**k), raising=False)
        assert not can_keep(guard.model, rows, labels)


def test_bf16_agrees_to_its_rounding():
    guard = tiny(dtype=torch.bfloat16)
    stream = Stream(guard)
    assert not Streams(guard).reencodes
    for start in range(0, 300, 50):
        probability = stream.feed(MANY[start : start + 50])
        assert probability == pytest.approx(guard.probabilities([MANY[: start + 50]])[0], abs=0.06)


def test_a_text_longer_than_the_model_reads_is_one_line_and_stops_no_other(guard):
    short = tiny(max_position_embeddings=120)
    streams = Streams(short)
    long, fine = streams.open(), streams.open()
    with pytest.raises(WeightopsError, match="the model reads 120"):
        streams.feed({long: MANY, fine: "safe"})
    assert fine.probability == pytest.approx(short.probabilities(["safe"])[0], abs=EXACT)
    with pytest.raises(ValueError, match="closed"):
        streams.feed({long: "more"})


def test_a_closed_stream_takes_no_more_and_a_stream_belongs_to_its_streams(guard):
    stream = Stream(guard)
    assert stream.close() == pytest.approx(guard.probabilities([""])[0], abs=EXACT)
    assert stream.close() == stream.probability
    with pytest.raises(ValueError, match="closed"):
        stream.feed("a")
    with pytest.raises(ValueError, match="other Streams"):
        Streams(guard).feed({Stream(guard): "a"})


def test_a_pass_that_failed_leaves_the_stream_sound(guard):
    stream = Stream(guard)
    stream.feed("is this ")
    with pytest.MonkeyPatch.context() as patch:
        layers = guard.model.model.layers
        patch.setattr(layers[1], "forward", lambda *_, **__: 1 / 0, raising=False)  # after the first wrote its keys
        with pytest.raises(ZeroDivisionError):
            stream.feed("unsafe ")
    assert stream.feed("or not") == pytest.approx(guard.probabilities(["is this unsafe or not"])[0], abs=EXACT)


# Tokenising only the end.


class _Reader:
    def __init__(self, guard, settles):
        self.frame, self.settles = guard.frame, settles


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.lists(st.one_of(characters, st.sampled_from(["word ", "a  b", "don't ", "x\n"])), max_size=120).map("".join),
        min_size=1,
        max_size=12,
    )
)
def test_tokenising_the_end_gives_the_tokens_of_the_whole(guard, chunks):
    prompt, text = _Prompt(_Reader(guard, _blanks_divide(guard.tokenizer))), ""
    for chunk in chunks:
        before = list(prompt.ids)
        same = prompt.add(chunk)
        text += chunk
        assert prompt.ids == guard.frame.rows([text])[0]
        assert before[:same] == prompt.ids[:same]
        assert same == len(before) or same == len(prompt.ids) or before[same] != prompt.ids[same]


def test_only_the_end_is_tokenised_where_there_are_blanks(guard):
    prompt = _Prompt(_Reader(guard, _blanks_divide(guard.tokenizer)))
    for _ in range(100):
        prompt.add("some more words of a text ")
        assert len(prompt._open) < 600
    assert prompt._settled > 500


def test_a_vocabulary_with_tokens_across_blanks_is_never_settled(guard):
    """With the token "a b", what follows a blank changes what is before it."""
    tokenizer = tiny_tokenizer()
    assert _blanks_divide(tokenizer)
    tokenizer.add_tokens(["more words of"])
    assert not _blanks_divide(tokenizer)
    other = guard_of(guard.model, tokenizer)
    prompt, text = _Prompt(_Reader(other, _blanks_divide(tokenizer))), ""
    for chunk in ["some more", " wo", "rds of a text "] * 40:
        prompt.add(chunk)
        text += chunk
        assert prompt.ids == other.frame.rows([text])[0]


def test_a_tokenizer_that_puts_a_blank_before_every_text_is_still_exact(guard):
    """Sentence pieces as Llama 2 has them: the two sides of a blank apart are not the two together."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Fuse()
    special = ["<unk>", "<|im_start|>", "<|im_end|>", *(f"<0x{byte:02X}>" for byte in range(256))]
    raw.train_from_iterator(
        ["is this safe", "unsafe words of text", "system user assistant Task"] * 3,
        trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False, max_token_length=6),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", eos_token="<|im_end|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.chat_template = tiny_tokenizer().chat_template
    two = tokenizer.convert_tokens_to_ids(["s", "u"])
    other = Guard(guard.model, tokenizer, GuardCard("Task", ("s", "u"), tuple(two)))
    prompt, text = (
        _Prompt(_Reader(other, 1)),
        "",
    )  # as if no token crossed a blank: the check on the spot is what is left
    for chunk in ["is this sa", "fe words of ", "te", "xt 日本 unsafe "] * 30:
        prompt.add(chunk)
        text += chunk
        assert prompt.ids == other.frame.rows([text])[0]
