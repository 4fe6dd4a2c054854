"""What goes out with a vocabulary: tokenizer files that load as planned, numbers in configs, chat templates."""

import json
from pathlib import Path

import jinja2
import pytest
import tiny_models as tiny
from mergekit._data import chat_templates
from tiny_vocabularies import bpe, model, out_ids, plan, special, words
from transformers import AutoTokenizer

import weightops as wo
from weightops.anatomy.vocabulary import token_tensors, with_vocabulary
from weightops.errors import WeightopsError
from weightops.io.safetensors import StoredTensor
from weightops.io.tokenizer import tokenizer_of
from weightops.io.weights import Weights
from weightops.merge.tokens.chat_template import TEMPLATES, template_of
from weightops.merge.tokens.model_tokens import read_tokens

UNION = "tokenizer_source: union"


def written(vocabulary, reference: Weights, folder: Path, config: dict | None = None) -> Path:
    """The output's folder as far as a tokenizer goes: carried from the reference, then what the vocabulary says."""
    folder.mkdir()
    for file in reference.folder.iterdir():
        if file.name not in vocabulary.left_out:
            (folder / file.name).write_bytes(file.read_bytes())
    for name, data in vocabulary.files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    (folder / "config.json").write_text(json.dumps({**reference.config, **vocabulary.config, **(config or {})}))
    return folder


# --- loaded by transformers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["TokenizersBackend", "Qwen2Tokenizer", "LlamaTokenizer", "GPT2Tokenizer"])
def test_a_union_loads_in_transformers_with_the_planned_numbers(tmp_path, kind):
    """Also where a class of transformers rebuilds the tokenizer from vocabulary and merges."""
    marks = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    base = special(bpe("abchlo", "a b"), *marks.values())
    weights = {
        "a": model(tmp_path / "a", base, 16, **marks),
        "b": model(tmp_path / "b", special(bpe("abchlo", "l o", "h lo"), "<s>", "<|end|>")),
    }
    settings = json.loads((tmp_path / "a" / "tokenizer_config.json").read_text())
    (tmp_path / "a" / "tokenizer_config.json").write_text(json.dumps({**settings, "tokenizer_class": kind}))
    vocabulary = plan(weights, UNION)
    loaded = AutoTokenizer.from_pretrained(written(vocabulary, weights["a"], tmp_path / "out"))
    got = loaded.get_vocab()
    assert {token: got.get(token) for token in out_ids(vocabulary)} == out_ids(vocabulary)
    assert (loaded.bos_token, loaded.eos_token, loaded.pad_token) == ("<s>", "</s>", "<pad>")
    assert "<|end|>" in loaded.get_added_vocab()
    assert max(got.values()) < vocabulary.size


def test_tokens_that_are_listed_in_the_settings_stay_right_after_a_union(tmp_path):
    """transformers 4 lists added tokens by number in tokenizer_config.json, and the list goes before the other file."""
    weights = {
        "a": model(tmp_path / "a", special(words("<unk>", "x"), "<s>")),
        "b": model(tmp_path / "b", special(words("<unk>", "k"), "<s>", "<t>")),
    }
    file = tmp_path / "a" / "tokenizer_config.json"
    listed = {"2": {"content": "<s>", "special": True}, "3": {"content": "<u>", "special": True}}
    file.write_text(json.dumps({**json.loads(file.read_text()), "added_tokens_decoder": listed}))
    weights["a"] = Weights(weights["a"].spec, weights["a"].tensors, weights["a"].folder, None, {"vocab_size": 4})
    tensor = StoredTensor("model.embed_tokens.weight", "F32", (4, 4), tmp_path / "w", 0)
    weights["a"] = Weights("a", {tensor.name: tensor}, tmp_path / "a", None, {"model_type": "llama", "vocab_size": 4})
    vocabulary = plan(weights, UNION)
    assert out_ids(vocabulary) == {"<unk>": 0, "x": 1, "<s>": 2, "<u>": 3, "k": 4, "<t>": 5}
    decoder = json.loads(vocabulary.files["tokenizer_config.json"])["added_tokens_decoder"]
    assert {number: entry["content"] for number, entry in decoder.items()} == {"2": "<s>", "3": "<u>", "5": "<t>"}
    assert all(entry["special"] for entry in decoder.values())
    assert AutoTokenizer.from_pretrained(written(vocabulary, weights["a"], tmp_path / "out")).get_vocab() == out_ids(
        vocabulary
    )


def test_the_references_files_go_out_byte_for_byte_where_no_token_is_added(tmp_path):
    weights = {
        "a": model(tmp_path / "a", special(words("<unk>", "x"), "<s>")),
        "b": model(tmp_path / "b", words("<unk>", "k")),
    }
    vocabulary = plan(weights, "tokenizer_source: base")
    assert vocabulary.left_out == ()
    for name, data in vocabulary.files.items():
        assert (tmp_path / "a" / name).read_bytes() == data
    assert "tokenizer.json" in vocabulary.files


def test_files_of_another_vocabulary_are_left_out(tmp_path):
    """Old files beside tokenizer.json know nothing of the new tokens; a source without them does not get them."""
    weights = {
        "a": model(tmp_path / "a", words("<unk>", "x")),
        "b": model(tmp_path / "b", words("<unk>", "k")),
    }
    for name in ("vocab.json", "merges.txt", "added_tokens.json", "tokenizer.model"):
        (tmp_path / "a" / name).write_text("{}")
    for text in (UNION, "tokenizer_source: b"):
        left = plan(weights, text).left_out
        assert sorted(left) == ["added_tokens.json", "merges.txt", "tokenizer.model", "vocab.json"]
    assert plan(weights, "tokenizer_source: base").left_out == ()


def test_a_vocabulary_from_before_tokenizer_json_is_converted(tmp_path):
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "x", "y"]
    for name, more in (("a", []), ("b", ["z"])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "vocab.txt").write_text("\n".join([*entries, *more]))
        (tmp_path / name / "config.json").write_text('{"model_type": "bert"}')
    weights = {
        name: Weights(name, {}, tmp_path / name, None, {"model_type": "bert", "vocab_size": rows})
        for name, rows in (("a", 7), ("b", 8))
    }
    assert tokenizer_of(weights["b"]).token_to_id("z") == 7
    assert out_ids(plan(weights, UNION)) == {token: i for i, token in enumerate([*entries, "z"])}


# --- numbers in configs ----------------------------------------------------------------------------------------------


def test_special_tokens_follow_the_tokenizer_of_another_model(tmp_path):
    """b's tokenizer: its config decides bos and eos, an image token is found by name, also inside text_config."""
    numbers = {"bos_token_id": 2, "eos_token_id": 2, "image_token_id": 3, "pad_token_id": None}
    more = {**numbers, "text_config": {"vocab_size": 4, "bos_token_id": 2, "hidden_size": 4}}
    weights = {
        "a": model(tmp_path / "a", special(words("<unk>", "x"), "<s>", "<image>"), 4, more),
        "b": model(
            tmp_path / "b",
            special(words("<unk>", "y", "x"), "<s>", "<image>", "<end>"),
            6,
            {"bos_token_id": 3, "eos_token_id": [3, 5], "pad_token_id": 0},
        ),
    }
    (tmp_path / "a" / "generation_config.json").write_text('{"eos_token_id": 2, "temperature": 0.5}')
    vocabulary = plan(weights, "tokenizer_source: b")
    assert vocabulary.config == {
        **{"vocab_size": 6, "bos_token_id": 3, "eos_token_id": [3, 5], "pad_token_id": 0, "image_token_id": 4},
        "text_config": {"vocab_size": 6, "bos_token_id": 3, "hidden_size": 4},
    }
    generation = json.loads(vocabulary.files["generation_config.json"])
    assert generation == {"eos_token_id": [3, 5], "temperature": 0.5}


def test_numbers_stay_where_the_tokenizer_is_the_references(tmp_path):
    weights = {
        "a": model(tmp_path / "a", special(words("<unk>", "x"), "<s>"), 3, {"bos_token_id": 2, "eos_token_id": 2}),
        "b": model(tmp_path / "b", words("<unk>", "k"), 2, {"bos_token_id": 0}),
    }
    assert plan(weights, UNION).config == {"vocab_size": 4}


def test_a_number_moves_with_its_token(tmp_path):
    """a's <pad> has no row, so it comes with b's, after k."""
    weights = {
        "a": model(tmp_path / "a", special(words("<unk>", "x"), "<pad>"), 2, {"pad_token_id": 2}),
        "b": model(tmp_path / "b", special(words("<unk>", "k"), "<pad>")),
    }
    vocabulary = plan(weights, UNION)
    assert out_ids(vocabulary) == {"<unk>": 0, "x": 1, "k": 2, "<pad>": 3}
    assert vocabulary.config == {"vocab_size": 4, "pad_token_id": 3}


@pytest.mark.parametrize(
    ("config", "changed"),
    [
        ({"vocab_size": 4}, {"vocab_size": 9}),
        ({"text_config": {"vocab_size": 4, "x": 1}}, {"text_config": {"vocab_size": 9, "x": 1}}),
        ({"model_type": "llama"}, {"vocab_size": 9}),  # its class's default no longer holds
        ({"text_config": {"x": 1}}, {"text_config": {"x": 1, "vocab_size": 9}}),
        ({"vocab_size": 4, "a": {"b": {"vocab_size": 4}}}, {"vocab_size": 9, "a": {"b": {"vocab_size": 9}}}),
        ({"vocab_size": 4, "audio_config": {"vocab_size": 5}}, {"vocab_size": 9}),
        ({"vocab_size": 7, "text_config": {"vocab_size": 4}}, {"vocab_size": 9, "text_config": {"vocab_size": 9}}),
        ({}, {}),
    ],
)
def test_the_size_is_set_wherever_it_stands(config, changed):
    assert with_vocabulary(config, 9) == changed


def test_tensors_with_a_row_a_token_are_told_by_name_and_length():
    shapes = {
        "model.embed_tokens.weight": (8, 4),
        "lm_head.weight": (8, 4),
        "lm_head.bias": (8,),
        "model.position_embeddings.weight": (32, 4),  # longer than the vocabulary
        "model.layers.0.mlp.up_proj.weight": (8, 4),
        "model.norm.weight": (8,),
    }
    tensors = {name: StoredTensor(name, "F32", shape, Path("w"), 0) for name, shape in shapes.items()}
    tables = token_tensors(Weights("m", tensors, None, None, {"vocab_size": 8}))
    assert tables == {"model.embed_tokens.weight", "lm_head.weight", "lm_head.bias"}


# --- chat templates --------------------------------------------------------------------------------------------------

TALK = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Yes?"},
    {"role": "user", "content": "Bye"},
]
SYSTEM = {"role": "system", "content": "Be kind."}


def rendered(template: str, messages: list, prompt: bool = True) -> str:
    """As transformers renders."""

    def refuse(message: str):
        raise ValueError(message)

    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = refuse
    names = {"bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": prompt}
    return environment.from_string(template).render(messages=messages, **names)


def mergekits(name: str) -> str:
    return (Path(chat_templates.__file__).parent / f"{name}.jinja").read_text()


@pytest.mark.parametrize("name", ["chatml", "mistral"])
@pytest.mark.parametrize("messages", [TALK, [SYSTEM, *TALK], TALK[:2]])
@pytest.mark.parametrize("prompt", [True, False])
def test_named_templates_write_what_mergekits_write(name, messages, prompt):
    assert rendered(TEMPLATES[name], messages, prompt) == rendered(mergekits(name), messages, prompt)


@pytest.mark.parametrize("name", ["llama3", "exaone", "alpaca"])
@pytest.mark.parametrize("messages", [TALK, [SYSTEM, *TALK]])
def test_named_templates_are_mergekits_but_for_stray_white_space(name, messages):
    """Indentation and line ends of mergekit's files run into the text; the formats have none there."""
    ours, oracle = rendered(TEMPLATES[name], messages), rendered(mergekits(name), messages)
    assert "".join(ours.split()) == "".join(oracle.split())
    assert ours != oracle


def test_named_templates_by_hand():
    talk = [SYSTEM, TALK[0]]
    head = "<|start_header_id|>{}<|end_header_id|>\n\n"
    assert rendered(TEMPLATES["llama3"], talk) == (
        f"<s>{head.format('system')}Be kind.<|eot_id|>{head.format('user')}Hi<|eot_id|>{head.format('assistant')}"
    )
    assert rendered(TEMPLATES["exaone"], talk) == "[|system|]Be kind.[|endofturn|]\n[|user|]Hi\n[|assistant|]"
    assert rendered(TEMPLATES["alpaca"], talk) == "Be kind.\n\n### Instruction:\nHi\n\n### Response:\n"


def chat_models(tmp_path, *templates: str | None) -> dict[str, Weights]:
    weights = {}
    for name, template in zip("abcd", templates, strict=False):
        weights[name] = model(tmp_path / name, words("<unk>", "x"))
        if template is not None:
            (tmp_path / name / "chat_template.jinja").write_text(template)
    return weights


def test_auto_takes_the_template_that_most_models_have(tmp_path):
    got = plan(chat_models(tmp_path, "{{ one }}", "{{ two }}", "{{ two }}\n"), "chat_template: auto")
    assert got.files["chat_template.jinja"] == b"{{ two }}"
    assert "b (2 of 3" in got.notes[-1]


def test_auto_among_equals_takes_the_first_models(tmp_path):
    got = plan(chat_models(tmp_path, "{{ one }}", "{{ two }}"), "chat_template: auto")
    assert got.files["chat_template.jinja"] == b"{{ one }}"


def test_a_name_or_jinja_is_written_as_it_is_and_unknown_markers_are_said(tmp_path):
    weights = chat_models(tmp_path, None, None)
    named = plan(weights, "chat_template: chatml")
    assert named.files["chat_template.jinja"].decode() == TEMPLATES["chatml"]
    assert any("<|im_start|>, <|im_end|>" in note for note in named.notes)
    planned = plan(weights, "chat_template: '{{ messages[0].content }}'")
    assert planned.files["chat_template.jinja"] == b"{{ messages[0].content }}"


def test_the_references_template_survives_a_union(tmp_path):
    weights = chat_models(tmp_path, "{{ one }}", None)
    weights["b"] = model(tmp_path / "b", words("<unk>", "k"))
    got = plan(weights, UNION)
    assert got.files["chat_template.jinja"] == b"{{ one }}"
    out = written(got, weights["a"], tmp_path / "out")
    assert AutoTokenizer.from_pretrained(out).chat_template == "{{ one }}"


def test_a_template_that_only_another_model_has_is_said(tmp_path):
    weights = chat_models(tmp_path, None, "{{ two }}")
    assert any("chat_template: auto" in note for note in plan(weights, UNION).notes)


def test_a_tokenizer_folder_gives_its_own_template_or_says_who_has_one(tmp_path):
    weights = chat_models(tmp_path, "{{ one }}", None)
    model(tmp_path / "t", words("<unk>", "x"))
    source = f"tokenizer_source: {tmp_path / 't'}"
    got = plan(weights, source)
    assert "chat_template.jinja" not in got.files
    assert got.left_out == ("chat_template.jinja",)
    assert any("chat_template: auto" in note for note in got.notes)
    (tmp_path / "t" / "chat_template.jinja").write_text("{{ theirs }}")
    assert plan(weights, source).files["chat_template.jinja"] == b"{{ theirs }}"


def test_one_template_is_left_wherever_there_was_one_before(tmp_path):
    """The settings and the file of older processors go before chat_template.jinja in some readers."""
    weights = chat_models(tmp_path, None, None)
    settings = tmp_path / "a" / "tokenizer_config.json"
    several = [{"name": "default", "template": "{{ old }}"}, {"name": "tools", "template": "{{ tools }}"}]
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "chat_template": several}))
    (tmp_path / "a" / "chat_template.json").write_text('{"chat_template": "{{ old }}"}')
    assert template_of(weights["a"]) == "{{ old }}"
    got = plan(weights, "chat_template: '{{ messages[0].content }}'")
    assert got.left_out == ("chat_template.json",)
    assert "chat_template" not in json.loads(got.files["tokenizer_config.json"])
    out = written(got, weights["a"], tmp_path / "out")
    assert AutoTokenizer.from_pretrained(out).chat_template == "{{ messages[0].content }}"


def test_a_template_goes_out_also_where_no_model_has_a_tokenizer(tmp_path):
    weights = {name: model(tmp_path / name, None, 4) for name in "ab"}
    (tmp_path / "a" / "tokenizer_config.json").write_text("{}")
    got = plan(weights, "chat_template: chatml")
    assert got.unchanged
    assert (sorted(got.files), got.left_out) == (["chat_template.jinja", "tokenizer_config.json"], ())


def test_a_token_with_a_number_that_no_vocabulary_has_is_refused_at_once(tmp_path):
    folder = tiny.write(tmp_path / "m", tiny.llama(0, vocab=13))
    tiny.tokenizer(folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"]["far"] = 4_000_000_000
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(WeightopsError, match="its vocabulary has token numbers above 16777216"):
        read_tokens({"m": wo.open(folder).source}, ["m"])
