"""A merge file is read as mergekit reads it; what is wrong is said all at once, each with its line."""

import pytest
import yaml
from mergekit.config import MergeConfiguration
from mergekit.scripts.multimerge import load_config

from weightops.errors import WeightopsError
from weightops.merge.config.documents import final, in_order
from weightops.merge.config.reading import load, parse
from weightops.merge.config.schema import Condition, ModelReference, TokenSource, reference
from weightops.merge.tokens.chat_template import TEMPLATES
from weightops.ops import registry

LINEAR = """\
merge_method: linear
models:
  - model: org/a
    parameters: {weight: 0.3}
  - model: org/b
    parameters: {weight: 0.7}
"""

TIES = """\
merge_method: ties
base_model: org/base
models:
  - model: org/base
  - model: org/a@v2+org/lora
    parameters:
      weight: 1e-1
      density: [1, 0.7, 0.1]
  - model: ./b
    parameters:
      weight:
        - filter: mlp
          value: [0.2, 0.4]
        - value: 0.5
      density: 0.33
parameters:
  normalize: true
  int8_mask: true
dtype: torch.bfloat16
out_dtype: float32
tokenizer_source: union
chat_template: chatml
"""

SLICES = """\
slices:
  - sources:
      - model: org/a
        layer_range: [0, 16]
      - model: org/b
        layer_range: [8, 24]
        parameters: {weight: 2}
    parameters:
      weight: 0.5
  - base_model: org/b
    residual_weight: 0.1
    sources: [{model: org/a, layer_range: [0, 0]}]
merge_method: linear
parameters: {weight: {filter: mlp, value: 1}}
tokenizer:
  source: org/a
  pad_to_multiple_of: 64
  tokens:
    "<|im_start|>": {source: {kind: model_token, model: org/b, token: "<s>"}, force: true}
    "<|im_end|>": {source: org/b}
    "<pad>": {source: {kind: zero}}
    "<x>": {}
"""

MODULES = """\
modules:
  text_decoder:
    slices:
      - sources: [{model: org/a, layer_range: [0, 4]}]
  vision_tower:
    models: [{model: org/b}]
    parameters: {scale: 0.5}
merge_method: passthrough
"""

EXAMPLES = {"linear": LINEAR, "ties": TIES, "slices": SLICES, "modules": MODULES}


def problems(text: str, *, strict: bool = False) -> list[str]:
    with pytest.raises(WeightopsError) as caught:
        parse(text, "c.yml", strict=strict)
    return list(caught.value.problems)


# --- the same file to mergekit and to us -----------------------------------------------------------------------------


def as_mergekit_writes(setting: tuple[Condition, ...]) -> object:
    plain = [c.value if not isinstance(c.value, tuple) else list(c.value) for c in setting]
    if len(setting) == 1 and setting[0].filter is None:
        return plain[0]
    return [{"filter": c.filter, "value": v} for c, v in zip(setting, plain, strict=True)]


def normal(parameters: dict | None) -> dict:
    """mergekit's own form of ``parameters``, with its two spellings of one condition made one."""
    as_list = {k: [v] if isinstance(v, dict) else v for k, v in (parameters or {}).items()}
    return {
        key: [{"filter": c.get("filter"), "value": c["value"]} for c in value]
        if isinstance(value, list) and isinstance(value[0], dict)
        else value
        for key, value in as_list.items()
    }


def ours(parameters) -> dict:
    return {key: as_mergekit_writes(setting) for key, setting in parameters.settings.items()}


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_file_reads_as_in_mergekit(name):
    oracle = MergeConfiguration.model_validate(yaml.safe_load(EXAMPLES[name]))
    (config,) = parse(EXAMPLES[name])
    dumped = oracle.model_dump()
    assert config.merge_method == oracle.merge_method
    assert config.base_model == (str(oracle.base_model) if oracle.base_model else None)
    assert set(config.referenced_models()) == {str(model) for model in oracle.referenced_models()}
    assert ours(config.parameters) == normal(dumped["parameters"])
    for mine, theirs in zip(config.models, oracle.models or (), strict=True):
        assert mine.model == str(theirs.model)
        assert ours(mine.parameters) == normal(theirs.model_dump()["parameters"])
    groups = oracle.slices or [s for m in (oracle.modules or {}).values() for s in m.slices or ()]
    slices = [group.slice for group in config.groups() if group.slice]
    for mine, theirs in zip(slices, groups, strict=True):
        assert ours(mine.parameters) == normal(theirs.model_dump()["parameters"])
        assert mine.base_model == (str(theirs.base_model) if theirs.base_model else None)
        assert [(s.model, s.layer_range) for s in mine.sources] == [
            (str(s.model), s.layer_range) for s in theirs.sources
        ]
        assert [ours(s.parameters) for s in mine.sources] == [
            normal(s.model_dump()["parameters"]) for s in theirs.sources
        ]


def test_dtypes_templates_and_effectless_keys():
    (config,) = parse(TIES, "c.yml")
    assert (config.dtype, config.out_dtype, config.chat_template) == ("bfloat16", "float32", "chatml")
    assert config.tokenizer is not None
    assert config.tokenizer.source == "union"
    assert config.notes == ("c.yml:18: 'int8_mask' has no effect with ties",)


def test_tokenizer_in_its_long_form():
    (config,) = parse(SLICES)
    assert config.tokenizer is not None
    assert (config.tokenizer.source, config.tokenizer.pad_to_multiple_of) == ("org/a", 64)
    sources = [(s.kind, s.model, s.token, s.force) for s in config.tokenizer.tokens.values()]
    assert sources == [
        ("model_token", "org/b", "<s>", True),
        ("model", "org/b", None, False),
        ("zero", None, None, False),
        ("default", None, None, False),
    ]
    assert config.tokenizer.tokens["<|im_end|>"] == TokenSource("model", "org/b", line=20)


def test_long_form_of_a_model_becomes_the_short_one():
    text = LINEAR.replace("model: org/a", "model: {model: {path: org/a, revision: v2}, lora: {path: org/lora}}")
    assert parse(text)[0].models[0].model == "org/a@v2+org/lora"
    assert reference("org/a@v2+org/lora@r") == ModelReference("org/a", "v2", "org/lora", "r")


@pytest.mark.parametrize("wrong", ["a+b+c", "a@b@c", "a+", "@v", ""])
def test_a_model_that_cannot_be_read(wrong):
    with pytest.raises(WeightopsError, match="cannot read the model"):
        reference(wrong)


def test_merge_keys_and_anchors_are_written_out():
    text = LINEAR.replace("parameters: {weight: 0.3}", "parameters: &p {weight: 0.3}").replace("{weight: 0.7}", "*p")
    assert [ours(model.parameters) for model in parse(text)[0].models] == [{"weight": 0.3}, {"weight": 0.3}]
    merged = text.replace("parameters: *p", "parameters: {<<: *p, weight: 0.9}")
    assert ours(parse(merged)[0].models[1].parameters) == {"weight": 0.9}


def test_load_reads_a_path_and_text(tmp_path):
    path = tmp_path / "merge.yml"
    path.write_text(LINEAR)
    assert load(path)[0].models == load(LINEAR)[0].models
    with pytest.raises(WeightopsError, match="cannot read the merge file"):
        load(tmp_path / "other.yml")


def test_an_explicit_null_is_as_good_as_nothing():
    (config,) = parse(LINEAR + "slices: null\nbase_model: null\ntokenizer: null\nparameters: null\ndtype: null\n")
    assert config == parse(LINEAR)[0].__class__(**{**vars(parse(LINEAR)[0]), "lines": config.lines})


# --- several documents -----------------------------------------------------------------------------------------------

MULTI = """\
merge_method: linear
models: [{model: second, parameters: {weight: 1}}]
---
name: second
merge_method: linear
models: [{model: first+org/lora, parameters: {weight: 1}}, {model: org/b, parameters: {weight: 1}}]
---
name: first
merge_method: passthrough
models: [{model: org/a}]
"""


def test_documents_run_after_what_they_use_and_mergekit_agrees():
    configs = parse(MULTI)
    assert [config.name for config in in_order(configs)] == ["first", "second", None]
    assert final(configs).name is None
    _, uses = load_config(MULTI, "/tmp")
    assert uses == {None: {"second"}, "second": {"first"}, "first": set()}


def test_circles_and_doubled_names():
    assert problems(MULTI.replace("org/a", "second")) == [
        "c.yml:4: documents use each other in a circle: second -> first -> second"
    ]
    assert problems(MULTI.replace("name: second", "name: first")) == [
        "c.yml:4: documents use each other in a circle: first -> first",
        "c.yml:8: name 'first' is used twice (first on line 4)",
    ]
    assert problems(LINEAR + "---\n" + LINEAR) == ["c.yml:8: only one document may have no name (first on line 1)"]


# --- faults ----------------------------------------------------------------------------------------------------------


def test_every_fault_is_reported_at_once_with_its_line():
    text = """\
merge_metod: ties
modelss:
  - model: org/a
base_model: 12
dtype: bf16
chat_template: no
tokenizer: {sorce: union}
parameters: {densty: 1}
"""
    assert problems(text, strict=True) == [
        "c.yml:1: unknown key 'merge_metod' has no effect (did you mean 'merge_method'?)",
        "c.yml:1: exactly one of models, slices and modules is needed; none given",
        "c.yml:1: merge_method is missing",
        "c.yml:2: unknown key 'modelss' has no effect (did you mean 'models'?)",
        "c.yml:4: 12 is not text; put it in quotes",
        "c.yml:5: unknown dtype 'bf16' (did you mean 'bfloat16'?)",
        "c.yml:6: False is not text; put it in quotes",
        "c.yml:7: unknown key 'sorce' has no effect (did you mean 'source'?)",
    ]


FAULTS = {
    "misspelt parameter": ("weight: 0.7", "wieght: 0.7", "6: unknown parameter 'wieght' has no effect with linear (did"),
    "misspelt method": ("linear", "linaer", "1: unknown merge method 'linaer' (did you mean 'linear'?)"),
    "misspelt key of a model": ("- model: org/b", "- modell: org/b", "5: unknown key 'modell' has no effect (did you"),
    "not a number": ("weight: 0.7", "weight: heavy", "6: weight must be a number, not 'heavy'"),
    "not finite": ("weight: 0.7", "weight: .nan", "6: weight must be a number, not nan"),
    "null": ("weight: 0.7", "weight: null", "6: 'weight' needs a number, text"),
    "empty list": ("weight: 0.7", "weight: []", "6: 'weight' needs a number, text"),
    "mixed list": ("weight: 0.7", "weight: [1, {value: 2}]", "6: a list must have either plain values or"),
    "misspelt filter": ("{weight: 0.7}", "{weight: {fliter: a, value: 1}}", "6: unknown key 'fliter' has no effect (did you"),
    "no value": ("{weight: 0.7}", "{weight: {filter: a}}", "6: value is missing"),
    "twice": ("org/b", "org/a", "5: model 'org/a' is listed twice; remove one entry"),
    "doubled key": ("{weight: 0.7}", "{weight: 0.7, weight: 0.3}", "6: key 'weight' is listed twice (first on line 6)"),
    "python tag": ("0.7", "!!python/object/apply:os.system [ls]", "6: tag !!python/object/apply:os.system is not allowed"),
    "own tag": ("0.7", "!secret 1", "6: tag !secret is not allowed"),
    "key not text": ("{weight: 0.7}", "{1: 0.7}", "6: key '1' is not text"),
    "broken YAML": ("{weight: 0.7}", "{weight: 0.7", "7: not valid YAML: while parsing a flow mapping, expected"),
    "control character": ("0.7", "0.7 \x07", "6: character '\\x07' is not allowed in YAML"),
    "alias in itself": ("{weight: 0.7}", "&p {weight: *p}", "6: an alias contains itself"),
    "unreadable number": ("0.7", "!!int x", "6: cannot read the value 'x'"),
    "two adapters": ("org/b", "org/b+c+d", "5: cannot read the model 'org/b+c+d'"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_fault(fault):
    was, wrong, message = FAULTS[fault]
    head, found, tail = LINEAR.rpartition(was)
    assert found
    lines = problems(head + wrong + tail, strict=True)
    assert any(line.startswith(f"c.yml:{message}") for line in lines), lines


@pytest.mark.parametrize("rows", ["0", "-8", "65537", "1000000000000", "9" * 60, "8.0", "true"])
def test_a_padding_that_would_take_much_memory_is_refused_with_its_line(rows):
    (problem,) = problems(f"{LINEAR}tokenizer:\n  source: union\n  pad_to_multiple_of: {rows}\n")
    assert "must be a whole number from 1 to 65536" in problem


def test_a_bomb_of_aliases_is_refused_before_it_is_built():
    rows = "\n".join(f"b{i}: &b{i} [{', '.join([f'*b{i - 1}'] * 10)}]" for i in range(1, 12))
    messages = problems(f"b0: &b0 [1]\n{rows}\n")
    assert messages == ["c.yml:1: the document has more than 200,000 values with its aliases expanded"]


def test_a_bomb_of_merge_keys_is_refused_before_it_is_built():
    rows = "\n".join(f"b{i}: &b{i} {{<<: [{', '.join([f'*b{i - 1}'] * 10)}]}}" for i in range(1, 12))
    messages = problems(f"b0: &b0 {{a: 1}}\n{rows}\n")
    assert messages == ["c.yml:1: the document has more than 200,000 values with its aliases expanded"]


@pytest.mark.parametrize("depth", [70, 90_000])
def test_endless_nesting_is_refused(depth):
    assert problems("a:\n  " + "[" * depth + "]" * depth) == [
        "c.yml:1: the document is nested too deeply (at most 64 levels)"
    ]


def test_method_faults():
    assert problems("merge_method: ties\nmodels: [{model: a}]\n") == [
        "c.yml:1: ties needs a base model; name it with base_model"
    ]
    assert problems("merge_method: model_stock\nbase_model: a\nmodels:\n  - model: a\n  - model: b\n") == [
        "c.yml:3: model_stock merges at least 2 models besides the base; 1 given"
    ]
    assert problems("merge_method: slerp\nbase_model: a\nparameters: {t: 1}\nmodels: [{model: b}, {model: c}]\n") == [
        "c.yml:4: slerp merges at most 1 model besides the base; 2 given"
    ]
    assert problems("merge_method: linear\nbase_model: a\nmodels: [{model: b, parameters: {weight: 1}}]\n") == [
        "c.yml:2: linear uses no base, so 'a' would be one more input, and its weight is not set; "
        "list it under models with a weight, or remove base_model"
    ]


@pytest.mark.parametrize("density", ["-0.1", "1.01", "[0.5, 2]", "[{filter: mlp, value: 3}, {value: 1}]"])
def test_density_out_of_range(density):
    text = TIES.replace("density: 0.33", f"density: {density}")
    assert len(problems(text)) == 1
    assert problems(text)[0].startswith("c.yml:15: density must be in [0, 1], not ")


def test_slice_faults():
    assert problems(SLICES.replace("[8, 24]", "[8, 23]")) == [
        "c.yml:2: the sources of a slice must have the same number of layers: org/a [0, 16], org/b [8, 23]"
    ]
    assert problems(SLICES.replace("[0, 0]", "[3, 1]")) == [
        "c.yml:12: layer_range [3, 1] must not be negative, and its end must not be before its start"
    ]
    assert problems(SLICES.replace("[0, 16]", "[0, 1.5]")) == [
        "c.yml:4: layer_range needs two whole numbers, [start, end], where end is not included"
    ]
    assert problems(SLICES.replace("linear", "ties\nbase_model: org/c")) == [
        "c.yml:2: base model 'org/c' is not among the slice's sources; add it with its layer_range",
        "c.yml:10: base model 'org/b' is not among the slice's sources; add it with its layer_range",
    ]
    assert problems(SLICES.replace("linear", "ties")) == [
        "c.yml:10: base model 'org/b' is not among the slice's sources; add it with its layer_range",
        "c.yml:13: ties needs a base model; name it with base_model",
    ]


def test_tokenizer_faults():
    assert problems(SLICES.replace("{source: org/b}", "{source: org/bb}")) == [
        "c.yml:20: token '<|im_end|>' comes from 'org/bb', which is not merged here (did you mean 'org/b'?)"
    ]
    assert problems(LINEAR + "tokenizer_source: base\ntokenizer: {source: union}\n") == [
        "c.yml:8: tokenizer_source and tokenizer are both set; remove one of them"
    ]
    assert problems(SLICES.replace('token: "<s>"', "")) == [
        "c.yml:19: model_token needs a model and either token or token_id"
    ]


@pytest.mark.parametrize(
    ("key", "tool"), [("experts: []", "run it with weightops moe"), ("genome: {}", "weightops soup evolve")]
)
def test_files_for_other_tools_say_where_to_go(key, tool):
    (said,) = problems(f"base_model: a\n{key}\n")
    assert said.startswith("c.yml:2:")
    assert tool in said


def test_an_empty_file():
    assert problems("# nothing\n")[0].startswith("c.yml:1: the file is empty")


def test_what_mergekit_ignores_is_noted_with_its_line_and_refused_if_strict():
    text = """\
merge_method: ties
base_model: org/base
pad_to_multiple_of: 8
dype: bfloat16
random_seed: 7
models:
  - model: org/base
    parameters: {weight: 0, density: 7}
  - model: org/a
    density: 0.5
    parameters: {weight: 0.5, lamda: 2, smooth: true}
  - model: org/b
    revision: main
    parameters: {weight: 0.5, weight: 0.7, density: {value: 1, layers: 3}}
parameters: {int8_mask: true, t: 3}
tokenizer: {source: union, tokens: {<x>: {source: {kind: zero, row: 1}, weight: 2}}, vocab: 3}
"""
    expected = [
        "3: unknown key 'pad_to_multiple_of' has no effect; write it under tokenizer",
        "4: unknown key 'dype' has no effect (did you mean 'dtype'?)",
        "5: unknown key 'random_seed' has no effect; give the seed to the command",
        "8: 'density' has no effect on the base: ties reads it of the other models",
        "8: 'weight' has no effect on the base: ties reads it of the other models",
        "10: unknown key 'density' has no effect; write it under parameters",
        "11: unknown parameter 'lamda' has no effect with ties (did you mean 'lambda'?)",
        "11: unknown parameter 'smooth' has no effect with ties; it takes weight, density, normalize, rescale, lambda",
        "13: unknown key 'revision' has no effect; write the model as NAME@REVISION",
        "14: key 'weight' is listed twice (first on line 14); only the last counts",
        "14: unknown key 'layers' has no effect; available: filter, value",
        "15: 'int8_mask' has no effect with ties",
        "15: 't' has no effect with ties",
        "16: unknown key 'row' has no effect; available: kind",
        "16: unknown key 'vocab' has no effect; available: source, tokens, pad_to_multiple_of",
        "16: unknown key 'weight' has no effect; available: source, force",
    ]
    (config,) = parse(text, "c.yml")
    assert list(config.notes) == [f"c.yml:{line}" for line in expected]
    assert sorted(problems(text, strict=True)) == sorted(config.notes)
    assert config.models[2].parameters.settings["weight"][0].value == 0.7
    MergeConfiguration.model_validate(yaml.safe_load(text))  # mergekit reads it without a word


def test_a_weight_that_is_not_set_is_noted_and_refused_if_strict():
    text = """\
merge_method: linear
models:
  - {model: a, parameters: {weight: 0.5}}
  - {model: b, parameters: {weight: {filter: mlp, value: 2}}}
  - model: c
"""
    (config,) = parse(text, "c.yml")
    assert config.notes == (
        "c.yml:2: the weight of b is not set; where no filter matches it is 1.0",
        "c.yml:2: the weight of c is not set; it is 1.0",
    )
    assert problems(text, strict=True) == list(config.notes)
    assert parse(text + "parameters: {weight: 1}\n", "c.yml", strict=True)[0].notes == ()


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "dare_ties", "della", "sce", "ram", "breadcrumbs"])
def test_a_base_alone_is_a_valid_file(method):
    (config,) = parse(f"merge_method: {method}\nbase_model: b+lora\nmodels: [{{model: b+lora}}]\n", strict=True)
    assert config.notes == (f"config:3: there is no model besides the base, so {method} copies the base",)


def test_notes_belong_to_their_document():
    one = LINEAR.replace("merge_method", "name: first\ndtyp: x\nmerge_method", 1)
    configs = parse(f"{one}---\n{LINEAR}smooth: true\n", "c.yml")
    assert [len(config.notes) for config in configs] == [1, 1]
    assert "'dtyp'" in configs[0].notes[0]
    assert "'smooth'" in configs[1].notes[0]


def test_parameters_of_other_methods_are_noted_not_refused():
    (config,) = parse(LINEAR.replace("weight: 0.3", "weight: 0.3, density: 0.5, normalize: false"), "c.yml")
    assert config.notes == (
        "c.yml:4: 'density' has no effect with linear",
        "c.yml:4: 'normalize' has no effect on one model: linear has one value for all models",
    )


def test_every_merge_method_of_ours_can_be_named():
    for method in registry.methods():
        base = "base_model: x\n" if method.needs_base else ""
        count = method.models[0]
        models = "".join(f"  - model: m{i}\n" for i in range(count)) + ("  - model: x\n" if base else "")
        required = "".join(f"  {p.name}: 0.5\n" for p in method.parameters if p.required)
        parameters = f"parameters:\n{required}" if required else ""
        (config,) = parse(f"merge_method: {method.name}\n{base}models:\n{models}{parameters}")
        assert len(config.models) == count + bool(base)


def test_every_template_that_a_merge_can_write_is_a_name_that_it_can_ask_for(monkeypatch):
    monkeypatch.setitem(TEMPLATES, "short", "{{ messages }}")
    for name in TEMPLATES:
        (config,) = parse(f"{LINEAR}chat_template: {name}\n", "c.yml")
        assert config.chat_template == name


# --- names that become folders ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "/data/notes",
        "../../notes",
        "a/b",
        "a\\\\b",
        "..",
        ".",
        ".hidden",
        "a\\0b",
        "a\\nb",
        "a\\x1b[2Jb",
        "n" * 101,
        " a",
    ],
)
def test_a_name_is_no_path(name):
    text = LINEAR + f'name: "{name}"\n'
    messages = problems(text)
    assert len(messages) == 1, messages
    assert messages[0].startswith("c.yml:7: name ")
    assert len(messages[0]) < 300


@pytest.mark.parametrize("name", ["first", "step-1", "my model", "größe_2.1", "n" * 100])
def test_ordinary_names_are_taken(name):
    assert parse(LINEAR + f'name: "{name}"\n')[0].name == name


@pytest.mark.parametrize("key", ["name", "chat_template", "base_model", "dtype"])
def test_text_that_is_no_unicode_is_refused_wherever_it_is(key):
    assert problems(LINEAR + f'{key}: "a\\ud800b"\n')[0].startswith("c.yml:7: cannot read the value")


# --- bounds ----------------------------------------------------------------------------------------------------------

ONE = "merge_method: linear\nmodels: [{model: a, parameters: {weight: 1}}]\n"
TOO_MUCH = {
    "documents": ("---\n".join(f"name: d{i}\n{ONE}" for i in range(300)), "300 documents, the limit is 100"),
    "models": ("merge_method: linear\nmodels:\n" + "- {model: a}\n" * 1_500, "the limit is 1,000"),
    "slices": (
        "merge_method: passthrough\nslices:\n- &s {sources: [{model: a, layer_range: [0, 4]}]}\n" + "- *s\n" * 2_000,
        "slices has 2,001 entries, the limit is 1,000",
    ),
    "layers": (
        "merge_method: passthrough\nslices:\n- sources: [{model: a, layer_range: [0, 1000000000]}]\n",
        "have 1000000000 layers together, the limit is 2,000",
    ),
    "gradient": (ONE + f"parameters: {{weight: [{'1,' * 2_000}]}}\n", "weight has 2,000 entries"),
    "filters": (
        ONE + "parameters:\n  weight:\n" + "  - {filter: x, value: 1}\n" * 1_500,
        "weight has 1,500 entries, the limit is 1,000",
    ),
    "gradient in a filter": (
        ONE + f"parameters: {{weight: [{{filter: x, value: [{'1,' * 2_000}]}}]}}\n",
        "value has 2,000 entries",
    ),
    "modules": (
        "merge_method: linear\nmodules:\n" + "".join(f"  m{i}: {{models: [{{model: a}}]}}\n" for i in range(200)),
        "modules has 200 entries, the limit is 100",
    ),
}


@pytest.mark.parametrize("case", TOO_MUCH)
def test_more_than_any_merge_has_is_refused_before_work_is_done_for_it(case):
    text, message = TOO_MUCH[case]
    messages = problems(text)
    assert any(message in problem for problem in messages), messages[:3]
    assert len(messages) <= 2


@pytest.mark.parametrize("number", [".inf", ".nan", "1.0e+39", "1" * 60])
def test_a_factor_that_no_layer_can_be_scaled_by_is_refused(number):
    assert problems(ONE + f"lines: {{alpha: {number}}}\n")[0].endswith("must be a finite number")
