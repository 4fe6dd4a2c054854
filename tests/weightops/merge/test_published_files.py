"""Merge files as people publish them, run by mergekit and by us: what it ignores we note, what it refuses we refuse."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_adapters
import tiny_models as tiny
import torch
import yaml
from merge_files import assert_close, family, ours, theirs

from weightops.errors import WeightopsError
from weightops.merge.config.reading import parse

pytest.importorskip("mergekit.merge")
from mergekit.config import MergeConfiguration

#: Each file with the beginnings of its notes; {base}, {a} and {b} are folders.
FILES = {
    "a slerp with left-overs": ("""
slices:
  - sources:
      - model: {base}
        layer_range: [0, 2]
      - model: {a}
        layer_range: [0, 2]
        revision: main
merge_method: slerp
base_model: {base}
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 1]
    - value: 0.5 # fallback for the rest
  embed_slerp: true
dtype: float32
random_seed: 0
""", ["unknown key 'revision'", "unknown parameter 'embed_slerp'", "unknown key 'random_seed'"]),
    "ties with the base among the models": ("""
models:
  - model: {base}
    # no parameters necessary for base model
  - model: {a}
    parameters:
      density: [1, 0.7, 0]  # density gradient
      weight: 1.0
  - model: {b}
    parameters:
      density: 0.33
      weight:
        - filter: mlp
          value: 0.5
        - value: 0
merge_method: ties
base_model: {base}
parameters:
  normalize: true
  int8_mask: true
  lamda: 0.5
dype: bfloat16
dtype: float32
""", ["'int8_mask' has no effect", "unknown parameter 'lamda' has no effect with ties (did you mean 'lambda'?)",
      "unknown key 'dype' has no effect (did you mean 'dtype'?)"]),
    "weights of the base, text for numbers": ("""
merge_method: linear
models:
  - model: {a}
    parameters: {weight: 1e0, density: 9}
  - model: {b}
    parameters: {weight: "0.25"}
parameters: {normalize: "false", allow_negative_weights: true, int_space: 3}
dtype: float32
""", ["'density' has no effect", "unknown parameter 'allow_negative_weights'", "unknown parameter 'int_space'"]),
    "a base alone": ("""
merge_method: task_arithmetic
base_model: {base}
models: [{model: {base}, parameters: {weight: 3}}]
dtype: float32
""", ["'weight' has no effect on the base", "there is no model besides the base"]),
    "modules, a merge method inside": ("""
merge_method: linear
modules:
  default:
    smooth: true
    slices:
      - sources: [{model: {a}, layer_range: [0, 1]}]
        merge_method: slerp
        residual_weight: 0.1
      - sources: [{model: {b}, layer_range: [1, 2]}]
parameters: {weight: 1}
dtype: float32
""", ["unknown key 'smooth'", "unknown key 'merge_method'"]),
    "a union of tokens, padded": ("""
merge_method: nuslerp
models:
  - {model: {a}, parameters: {weight: 0.5}}
  - {model: {b}, parameters: {weight: 0.5}}
pad_to_multiple_of: 4
tokenizer:
  source: union
  pad_to_multiple_of: 8
  tokens: {}
  add: nothing
dtype: float32
""", ["unknown key 'pad_to_multiple_of'", "unknown key 'add'"]),
    "a key twice": ("""
merge_method: linear
models: [{model: {a}}, {model: {b}}]
parameters: {weight: 9, weight: 1}
dtype: bfloat16
dtype: float32
""", ["key 'weight' is listed twice", "key 'dtype' is listed twice"]),
}  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    return family(tmp_path_factory.mktemp("models"), ["base", "a", "b"], layers=2, vocab=13)


def filled(text: str, models: dict[str, Path]) -> str:
    for name, folder in models.items():
        text = text.replace(f"{{{name}}}", str(folder))
    return text


@pytest.mark.parametrize("file", FILES)
def test_the_file_gives_the_model_that_mergekit_makes_of_it_and_notes_what_has_no_effect(models, tmp_path, file):
    text, expected = FILES[file]
    text = filled(text, models)
    assert_close(ours(text, tmp_path / "ours"), theirs(text, tmp_path / "theirs"))
    assert (tmp_path / "ours" / "mergekit_config.yml").read_text() == text
    notes = parse(text)[0].notes
    assert len(notes) == len(expected), notes
    assert all(any(start in note for note in notes) for start in expected), notes
    with pytest.raises(WeightopsError):
        parse(text, strict=True)


#: Changes of a valid file, and whether mergekit reads the result.
VARIANTS = {
    ("dtype: float32", "dtype: float32\nfoo: {bar: [1, null]}"): True,
    ("weight: 0.5", "weight: 0.5, foo: 1"): True,
    ("weight: 0.5", "weight: {value: 0.5, unit: x}"): True,
    ("weight: 0.5", "weight: null"): False,
    ("weight: 0.5", "foo: {bar: 1}"): False,
    ("weight: 0.5", "weight: [1, {value: 2}]"): False,
    ("- model: a", "- model: {model: {path: a, foo: 1}, lora: null, bar: 2}"): True,
    ("- model: a", "- modell: a"): False,
    ("- model: a", "- model: a+b+c"): False,
    ("- model: a", "- model: a@b@c"): False,
    ("merge_method: linear", "merge_metod: linear"): False,
    ("models:", "slices:"): False,
    ("models:", "foo:"): False,
    ("dtype: float32", "dtype: 3"): False,
    ("dtype: float32", "tokenizer_source: base\ntokenizer: {source: union}"): False,
    ("dtype: float32", "tokenizer: {source: union, tokens: {x: {source: {kind: zero, foo: 1}}}, foo: 1}"): True,
}  # fmt: skip
VALID = "merge_method: linear\nmodels:\n  - model: a\n    parameters: {weight: 0.5}\ndtype: float32\n"


@pytest.mark.parametrize("change", VARIANTS)
def test_what_mergekit_refuses_we_refuse_and_what_it_reads_we_read(change):
    text = VALID.replace(*change)
    assert text != VALID

    def read(reader) -> bool:
        try:
            reader()
        except (WeightopsError, ValueError, RuntimeError):
            return False
        return True

    assert read(lambda: MergeConfiguration.model_validate(yaml.safe_load(text))) == VARIANTS[change]
    assert read(lambda: parse(text)) == VARIANTS[change]


def test_an_adapter_is_baked_into_a_base_alone(models, tmp_path):
    adapter = tiny_adapters.peft_adapter(models["base"], tmp_path / "lora", target_modules=["q_proj"])
    text = f"merge_method: task_arithmetic\nbase_model: {models['base']}+{adapter}\n"
    text += f"models: [{{model: {models['base']}+{adapter}}}]\n"
    baked, base = ours(text, tmp_path / "ours"), tiny.read(models["base"])
    copied = ours(f"merge_method: passthrough\nmodels: [{{model: {models['base']}+{adapter}}}]\n", tmp_path / "copy")
    assert all(torch.equal(copied[name], value) for name, value in baked.items())
    assert any(not torch.equal(base[name], value) for name, value in baked.items())
