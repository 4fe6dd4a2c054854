"""From a document to a plan: what each tensor is computed as, in which dtype, and every problem that headers show."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_models as tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from merge_cases import required
from merge_files import config_of, family, ours
from torch import Tensor

from weightops.algebra.opening import Opener
from weightops.errors import WeightopsError
from weightops.merge.build import Built, Options, build
from weightops.merge.config.reading import parse
from weightops.merge.run import open_models
from weightops.ops import find, methods, operator, registry

CONFIG = {"model_type": "llama", "num_hidden_layers": 2, "vocab_size": 24}
MLP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    """A base of two layers and three models trained from it, fp32."""
    return family(tmp_path_factory.mktemp("models"), ["base", "a", "b", "c"], layers=2)


def planned(text: str, **options) -> Built:
    (config,) = parse(text, "c.yml")
    return build(config, open_models(config, {}, Opener()), Options(text=text, **options))


def problems(text: str) -> tuple[str, ...]:
    """What is wrong, whether it is said at once or stands in the plan."""
    try:
        return planned(text).plan.problems
    except WeightopsError as error:
        return error.problems


def file_of(models: dict[str, Path], method: str, names: str = "ab", base: str | None = None, more: str = "") -> str:
    head = f"base_model: {models[base]}\n" if base else ""
    listed = "".join(f"  - model: {models[name]}\n" for name in names)
    return f"merge_method: {method}\n{head}models:\n{listed}{more}\n"


def kinds(built: Built) -> set[str]:
    return {job.merge.method if job.merge else "copy" if job.copies else "sum" for job in built.plan.jobs}


# --- what becomes of a tensor ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "names", "base", "more", "kind"),
    [
        ("linear", "ab", None, "", "sum"),
        ("linear", "ab", None, "parameters: {weight: [0, 1], normalize: false}", "sum"),
        ("task_arithmetic", "ab", "base", "", "sum"),
        ("passthrough", "a", None, "", "copy"),
        ("passthrough", "a", None, "dtype: bfloat16", "sum"),
        ("passthrough", "a", None, "parameters: {scale: 0.5}", "sum"),
        ("ties", "ab", "base", "", "ties"),
        ("slerp", "a", "base", "parameters: {t: 0.5}", "slerp"),
    ],
)
def test_methods_of_known_coefficients_are_streamed_sums(models, method, names, base, more, kind):
    assert kinds(planned(file_of(models, method, names, base, more))) == {kind}


FORMULAS = {
    "linear": lambda base, models, w: sum(x * m for x, m in zip(w, models, strict=True)) / sum(w),
    "task_arithmetic": lambda base, models, w: base + sum(x * (m - base) for x, m in zip(w, models, strict=True)),
}


@pytest.mark.parametrize("method", FORMULAS)
@given(weights=st.lists(st.floats(0.1, 2).map(lambda w: round(w, 3)), min_size=2, max_size=3))
@settings(max_examples=8, deadline=None)
def test_linear_and_task_arithmetic_are_their_formulas(models, tmp_path_factory, method, weights):
    names = "abc"[: len(weights)]
    listed = "".join(
        f"  - {{model: {models[n]}, parameters: {{weight: {w}}}}}\n" for n, w in zip(names, weights, strict=True)
    )
    base = f"base_model: {models['base']}\n" if method != "linear" else ""
    out = tmp_path_factory.mktemp("out") / "out"
    merged = ours(f"merge_method: {method}\n{base}models:\n{listed}", out)
    of_base, *others = (tiny.read(models[name]) for name in ["base", *names])
    for name, value in merged.items():
        true = FORMULAS[method](of_base[name].double(), [other[name].double() for other in others], weights)
        torch.testing.assert_close(value.double(), true, rtol=0, atol=1e-6)


@pytest.mark.parametrize("normalize", [True, False])
def test_normalize_lambda_and_gradients_of_task_arithmetic(models, tmp_path, normalize):
    more = f"parameters: {{weight: [0.5, 1.5], lambda: 0.6, normalize: {str(normalize).lower()}}}"
    merged = ours(file_of(models, "task_arithmetic", "ab", "base", more), tmp_path / "out")
    base, a, b = (tiny.read(models[name]) for name in ("base", "a", "b"))
    for name, value in merged.items():
        weight = 1.5 if "layers.1" in name else 0.5  # outside the layers a gradient gives its first point
        share = 0.6 * (0.5 if normalize else weight)
        true = base[name].double() + share * (a[name].double() + b[name].double() - 2 * base[name].double())
        torch.testing.assert_close(value.double(), true, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "dare_linear"])
def test_lines_scales_what_is_added_layer_by_layer(models, tmp_path, method):
    text = file_of(models, method, "ab", "base", "parameters: {weight: 1.0}")
    plain = ours(text, tmp_path / "plain")
    scaled = ours(f"{text}lines: {{alpha: 0.25, beta: 0.5}}\n", tmp_path / "scaled")
    flat = ours(f"{text}lines: {{alpha: 1.0, beta: 0.0}}\n", tmp_path / "flat")
    base = tiny.read(models["base"])
    for name, value in scaled.items():
        factor = 0.75 if "layers.1" in name else 0.25
        true = base[name].double() + factor * (plain[name].double() - base[name].double())
        torch.testing.assert_close(value.double(), true, rtol=0, atol=1e-6)
        assert torch.equal(flat[name], plain[name])  # LiNeS with slope 0 is the plain method


def test_lines_does_nothing_to_a_method_without_task_vectors(models, tmp_path):
    text = file_of(models, "linear")
    plain, scaled = ours(text, tmp_path / "plain"), ours(f"{text}lines: {{alpha: 0.1}}\n", tmp_path / "scaled")
    assert all(torch.equal(scaled[name], value) for name, value in plain.items())


@pytest.mark.parametrize("method", sorted(m.name for m in methods()))
def test_every_method_can_be_named_in_a_file(models, tmp_path, method):
    described = find(method)
    names = "abc"[: min(described.models[1] or 3, 3)]
    more = f"parameters: {json.dumps(required(described))}"
    merged = ours(file_of(models, method, names, "base" if described.needs_base else None, more), tmp_path / "out")
    assert merged.keys() == tiny.read(models["a"]).keys()
    assert all(value.isfinite().all() for value in merged.values())


# --- dtypes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "dtype"),
    [
        ("", "float32"),
        ("dtype: bfloat16", "bfloat16"),
        ("out_dtype: float16", "float16"),
        ("dtype: bfloat16\nout_dtype: float16", "float16"),
        ("dtype: float64", "float64"),
    ],
)
@pytest.mark.parametrize("method", ["linear", "ties", "passthrough"])
def test_the_output_has_the_out_dtype_else_the_dtype_else_the_first_inputs(models, tmp_path, keys, dtype, method):
    base = None if method != "ties" else "base"
    text = file_of(models, method, "a" if method == "passthrough" else "ab", base, keys)
    merged = ours(text, tmp_path / "out")
    assert {str(value.dtype) for value in merged.values()} == {f"torch.{dtype}"}
    assert config_of(tmp_path / "out")["dtype"] == dtype


def test_integer_tensors_are_copied_when_all_agree_and_an_error_when_not(tmp_path):
    def model(name: str, seed: int, number: int) -> Path:
        tensors = tiny.llama(seed) | {
            "model.layers.0.steps": torch.tensor([number, 2]),
            "model.none": torch.zeros(0, 4),
        }
        return tiny.write(tmp_path / name, tensors, config=CONFIG)

    models = {"a": model("a", 0, 7), "b": model("b", 1, 7), "c": model("c", 2, 8)}
    for method, base in (("linear", None), ("ties", "a"), ("karcher", None)):
        merged = ours(file_of(models, method, "ab" if base is None else "b", base), tmp_path / f"{method}-out")
        assert merged["model.layers.0.steps"].tolist() == [7, 2]
        assert merged["model.none"].shape == (0, 4)
    with pytest.raises(WeightopsError, match=r"model\.layers\.0\.steps"):
        ours(file_of(models, "linear", "ac"), tmp_path / "out")
    assert not list(tmp_path.glob(".*"))


# --- heads -----------------------------------------------------------------------------------------------------------


def test_the_embedding_of_a_tied_model_is_its_head_where_the_output_has_one(tmp_path):
    untied = family(tmp_path / "u", ["a"], layers=2)["a"]
    tied = family(tmp_path / "t", ["b"], layers=2, tied=True, seed=3)["b"]
    merged = ours(f"merge_method: linear\nmodels: [{{model: {untied}}}, {{model: {tied}}}]\n", tmp_path / "one")
    of_tied = tiny.read(tied)
    head = (tiny.read(untied)["lm_head.weight"] + of_tied["model.embed_tokens.weight"]) / 2
    torch.testing.assert_close(merged["lm_head.weight"], head, rtol=0, atol=1e-7)
    built = planned(f"merge_method: linear\nmodels: [{{model: {tied}}}, {{model: {untied}}}]\n")
    assert "lm_head.weight" not in {job.name for job in built.plan.jobs}
    assert any("left out" in note and "lm_head.weight" in note for note in built.plan.notes)


# --- problems --------------------------------------------------------------------------------------------------------


def test_weights_that_sum_to_zero_are_said_for_each_tensor_they_stand_at(models):
    more = "parameters: {weight: [{filter: up_proj, value: 0}, {value: 1}]}"
    messages = problems(file_of(models, "linear", "ab", None, more))
    assert len(messages) == 2
    assert all("up_proj" in problem and "the weights sum to 0" in problem for problem in messages)


def test_shapes_that_differ_are_all_found_before_anything_is_read(tmp_path):
    a = tiny.write(tmp_path / "a", tiny.llama(0), config=CONFIG)
    b = tiny.write(tmp_path / "b", tiny.llama(1, hidden=8), config=CONFIG)
    (a / "model.safetensors").chmod(0o400)
    messages = problems(f"merge_method: linear\nmodels: [{{model: {a}}}, {{model: {b}}}]\n")
    assert messages
    assert all("shape" in problem for problem in messages)
    assert any("(16, 16)" in problem and "(8, 8)" in problem for problem in messages)


def test_problems_of_layout_and_tokenizers_are_said_together(models, tmp_path):
    text = file_of(models, "linear", "ab", None, "tokenizer_source: /nowhere/tokenizer")
    short = tiny.llama(0, layers=2)
    short.pop(MLP)
    broken = tiny.write(tmp_path / "short", short, config=CONFIG)
    messages = problems(text.replace(str(models["b"]), str(broken)))
    assert len(messages) >= 1
    assert any("/nowhere/tokenizer" in problem for problem in messages)


def test_the_plan_says_how_much_memory_a_matrix_method_wants(models):
    wudi = planned(file_of(models, "wudi", "ab", "base")).plan
    ties = planned(file_of(models, "ties", "ab", "base")).plan
    largest = max(job.count for job in wudi.jobs)
    assert wudi.peak_memory(1, 1 << 20) > 4 * largest * 3
    assert {job.merge.workspace > 4 * job.count * 3 * 3 for job in wudi.jobs if job.merge} == {True}
    assert all(job.merge.workspace <= 24 * job.count for job in ties.jobs if job.merge)


def test_the_card_names_models_method_and_paper(models):
    built = planned(file_of(models, "ties", "ab", "base"))
    assert built.package.card.tags == ("ties",)
    assert [paper.arxiv for paper in built.package.card.papers] == ["2306.01708"]
    assert all(str(models[name]) in built.package.card.text for name in ("base", "a", "b"))
    assert planned(file_of(models, "slerp", "a", "base", "parameters: {t: 0.5}")).package.card.papers == ()


def test_a_method_of_a_users_own_that_says_its_coefficients_is_one_linear_combination(models, tmp_path, monkeypatch):
    def halves(count: int, *, lambda_: float = 1.0) -> list[float]:
        return [lambda_ / 2**place for place in range(1, count + 1)]

    def fading(deltas: Tensor, *, lambda_: float = 1.0) -> Tensor:
        """Each model counts half as much as the one before it."""
        return sum(c * delta for c, delta in zip(halves(len(deltas), lambda_=lambda_), deltas, strict=True))

    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    operator(reads="elementwise", paper="a test", affine=halves)(fading)
    text = file_of(models, "fading", "ab", "base", "parameters: {lambda: 0.8}")
    assert kinds(planned(text)) == {"sum"}
    base, a, b = (tiny.read(models[name]) for name in ("base", "a", "b"))
    for name, value in ours(text, tmp_path / "out").items():
        true = base[name].double() + 0.4 * (a[name].double() - base[name]) + 0.2 * (b[name].double() - base[name])
        torch.testing.assert_close(value.double(), true, rtol=0, atol=1e-6)
    text = file_of(models, "fading", "ab", "base", "parameters: {lambda: 0.8}\nlines: {alpha: 0.5, beta: 0.0}")
    for name, value in ours(text, tmp_path / "lines").items():
        true = base[name].double() + 0.2 * (a[name].double() - base[name]) + 0.1 * (b[name].double() - base[name])
        torch.testing.assert_close(value.double(), true, rtol=0, atol=1e-6)
