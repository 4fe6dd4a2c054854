"""compose-guard is target + scale * (guard - base), rounded once; elsewhere the target, byte for byte."""

from __future__ import annotations

import json
from math import sqrt
from pathlib import Path

import pytest
import tiny_models as tiny
import torch

import weightops as wo
from weightops.algebra.opening import open_all
from weightops.errors import WeightopsError
from weightops.guard.compose import Composition
from weightops.output.save import save

FAMILIES = [(family, tied) for family in ("llama", "qwen3", "gemma3") for tied in (True, False)]
DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def compose(guard: Path, base: Path, target: Path, out: Path, **options: object) -> Composition:
    """Plan and save; nothing is shown."""
    composition = wo.compose_guard(*open_all([guard, base, target]), **options)  # type: ignore[arg-type]
    save(composition.plan, composition.package, out, progress=False)
    return composition


def triple(folder: Path, tensors: tiny.Tensors, **dtypes: torch.dtype) -> list[Path]:
    """Guard, base and target folders from one table of tensors, each in its dtype where one is named."""
    models = {"guard": tiny.perturbed(tensors, 1), "base": tensors, "target": tiny.perturbed(tensors, 2, 0.1)}
    return [
        tiny.write(folder / name, tiny.cast(model, dtypes[name]) if name in dtypes else model)
        for name, model in models.items()
    ]


@pytest.fixture(scope="session")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, bool], Path]:
    """A folder for each family, tied and untied, holding guard, base and target in fp32."""
    root = tmp_path_factory.mktemp("families")
    made = {}
    for family, tied in FAMILIES:
        folder = root / f"{family}-{'tied' if tied else 'untied'}"
        made[family, tied] = folder
        base = tiny.read(tiny.transformer(folder / "base", family, tied=tied))
        for name, seed, size in (("guard", 1, 0.02), ("target", 2, 0.1)):
            tiny.transformer(folder / name, family, tied=tied)
            tiny.rewrite(folder / name, tiny.perturbed(base, seed, size))
    return made


@pytest.fixture
def stored_as(families: dict[tuple[str, bool], Path], tmp_path: Path):  # type: ignore[no-untyped-def]
    """The three folders of a family with their weights in another dtype."""

    def make(family: tuple[str, bool], dtype: torch.dtype) -> list[Path]:
        folders = []
        for name in ("guard", "base", "target"):
            folder = tiny.copy(families[family] / name, tmp_path / name)
            tiny.rewrite(folder, tiny.cast(tiny.read(folder), dtype))
            folders.append(folder)
        return folders

    return make


def test_the_head_of_chatglm_and_of_bert_is_the_targets_and_their_feed_forward_is_moved(tmp_path):
    dropped = (
        "transformer.output_layer.weight",
        "cls.predictions.decoder.weight",
        "cls.predictions.transform.dense.weight",
    )
    moved = ("bert.encoder.layer.0.intermediate.dense.weight", "bert.encoder.layer.0.output.dense.weight")
    tensors = {name: torch.randn(4, 3) for name in (*dropped, *moved)}
    guard, base, target = triple(tmp_path, tensors)
    composition = compose(guard, base, target, tmp_path / "out")
    assert (composition.dropped, composition.applied) == (frozenset(dropped), frozenset(moved))
    assert {row.group: row.applied for row in composition.report()} == {"mlp": True, "head": False}
    written, before = tiny.read(tmp_path / "out"), tiny.read(target)
    assert {name for name in written if not tiny.same_bytes(written[name], before[name])} == set(moved)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_composition_is_the_fp32_formula_rounded_once_and_the_rest_is_the_target(family, dtype, stored_as, tmp_path):
    guard, base, target = stored_as(family, dtype)
    g, b, t = (tiny.read(folder) for folder in (guard, base, target))
    for scale in (1.0, 0.3, -1.5):
        out = tmp_path / f"out{scale}"
        compose(guard, base, target, out, scale=scale)
        result = tiny.read(out)
        assert result.keys() == t.keys()
        for name, tensor in result.items():
            expected = t[name] if tiny.left_out(name) else tiny.composed(t[name], g[name], b[name], scale)
            assert tiny.same_bytes(tensor, expected), (name, scale)
        assert not tiny.same_bytes(result[CHANGED], t[CHANGED])


CHANGED = "model.layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize("shard_size", [None, 4000], ids=["one file", "shards"])
@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_the_output_loads_in_transformers_and_generates(family, shard_size, stored_as, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    guard, base, target = stored_as(family, torch.bfloat16)
    out = tmp_path / "out"
    compose(guard, base, target, out, **({"shard_size": shard_size} if shard_size else {}))
    files = sorted(out.glob("*.safetensors"))
    index = out / "model.safetensors.index.json"
    assert (len(files) > 2) == index.exists() == bool(shard_size)
    assert all(file.stat().st_size < 8192 for file in files) or not shard_size
    model, loading = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(loading.values()), loading
    assert model.dtype == torch.bfloat16
    stored = tiny.read(out)
    for name, parameter in model.state_dict().items():
        if name in stored:
            assert tiny.same_bytes(parameter, stored[name]), name
    words = AutoTokenizer.from_pretrained(out)
    inputs = words.apply_chat_template([{"role": "user", "content": "hello"}], return_tensors="pt", return_dict=True)
    made = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert made.shape[1] > inputs["input_ids"].shape[1]


def test_small_shards_hold_at_most_the_size_asked_for_and_the_index_names_every_tensor(tmp_path):
    guard, base, target = triple(tmp_path, tiny.llama(0))
    composition = compose(guard, base, target, tmp_path / "out", shard_size=3000)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    stored = tiny.read(tmp_path / "out")
    assert index["weight_map"].keys() == stored.keys() == tiny.read(target).keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in stored.values())
    assert len(composition.plan.files) == len(set(index["weight_map"].values())) > 2
    for file in composition.plan.files:
        assert file.size - len(file.head) <= 3000 or len(file.offsets) == 1


def test_sharded_sources_give_the_bytes_of_whole_ones(tmp_path):
    guard, base, target = triple(tmp_path / "whole", tiny.llama(0))
    split = [
        tiny.write(tmp_path / "split" / folder.name, tiny.read(folder), shards=n)
        for folder, n in ((guard, 2), (base, 3), (target, 4))
    ]
    compose(guard, base, target, tmp_path / "one")
    compose(*split, tmp_path / "two")
    assert (tmp_path / "one/model.safetensors").read_bytes() == (tmp_path / "two/model.safetensors").read_bytes()
    one, two = (json.loads((tmp_path / which / "weightops.json").read_text()) for which in ("one", "two"))
    assert one["outputs"] == two["outputs"]
    assert [s["content"] for s in one["sources"]] == [s["content"] for s in two["sources"]]


@pytest.mark.parametrize(
    ("guard_dtype", "base_dtype", "target_dtype"),
    [
        (torch.float32, torch.bfloat16, torch.float16),
        (torch.bfloat16, torch.float16, torch.float32),
        (torch.float16, torch.float16, torch.bfloat16),
        (torch.float64, torch.float64, torch.float64),
        (torch.bfloat16, torch.bfloat16, torch.float64),
        (torch.float64, torch.float32, torch.float32),
    ],
    ids=str,
)
def test_sources_of_different_dtypes_are_widened_and_the_target_dtype_is_kept(
    guard_dtype, base_dtype, target_dtype, tmp_path
):
    guard, base, target = triple(
        tmp_path, tiny.llama(0, dtype=torch.float64), guard=guard_dtype, base=base_dtype, target=target_dtype
    )
    compose(guard, base, target, tmp_path / "out", scale=0.7)
    g, b, t = (tiny.read(folder) for folder in (guard, base, target))
    for name, tensor in tiny.read(tmp_path / "out").items():
        expected = t[name] if tiny.left_out(name) else tiny.composed(t[name], g[name], b[name], 0.7)
        assert tiny.same_bytes(tensor, expected), name


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_another_output_dtype_is_one_rounding_away_and_stands_in_the_config(name, tmp_path):
    dtype = getattr(torch, name)
    guard, base, target = triple(tmp_path, tiny.llama(0, dtype=torch.float32))
    compose(guard, base, target, tmp_path / "out", dtype=name)
    g, b, t = (tiny.read(folder) for folder in (guard, base, target))
    for tensor_name, tensor in tiny.read(tmp_path / "out").items():
        whole = t[tensor_name].float()
        if not tiny.left_out(tensor_name):
            whole = whole + (g[tensor_name] - b[tensor_name])
        assert tiny.same_bytes(tensor, whole.to(dtype)), tensor_name
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config.get("dtype") == (None if name == "float32" else name)


def test_a_target_with_another_vocabulary_keeps_its_embedding_and_head(tmp_path):
    guard, base, _ = triple(tmp_path, tiny.llama(0))
    mine = tiny.llama(5, vocab=40)
    target = tiny.write(tmp_path / "wide", mine)
    compose(guard, base, target, tmp_path / "out")
    g, b, result = tiny.read(guard), tiny.read(base), tiny.read(tmp_path / "out")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert result[name].shape[0] == 40
        assert tiny.same_bytes(result[name], mine[name])
    assert tiny.same_bytes(result[CHANGED], tiny.composed(mine[CHANGED], g[CHANGED], b[CHANGED], 1.0))


def test_scale_zero_is_the_target_exactly(tmp_path):
    guard, base, target = triple(tmp_path, tiny.llama(0))
    compose(guard, base, target, tmp_path / "out", scale=0.0)
    result, mine = tiny.read(tmp_path / "out"), tiny.read(target)
    assert result.keys() == mine.keys()
    assert all(tiny.same_bytes(result[name], mine[name]) for name in mine)


def test_a_guard_that_is_its_base_is_refused_before_anything_is_read(tmp_path):
    _, base, target = triple(tmp_path, tiny.llama(0))
    link = tmp_path / "link"
    link.symlink_to(base)
    for guard in (base, link):
        composition = wo.compose_guard(*(wo.open(folder) for folder in (guard, base, target)))
        with pytest.raises(WeightopsError, match="are the same files, so nothing would be added"):
            composition.save(tmp_path / "out", progress=False)
    assert {path.name for path in tmp_path.iterdir()} == {"guard", "base", "target", "link"}


def test_a_guard_that_equals_its_base_where_it_is_applied_leaves_no_output(tmp_path):
    guard, base, target = triple(tmp_path, tiny.llama(0))
    changed = tiny.read(base) | {"model.norm.weight": tiny.read(guard)["model.norm.weight"]}
    tiny.rewrite(guard, changed)
    with pytest.raises(WeightopsError, match="have equal values in all 14 tensors that are applied"):
        compose(guard, base, target, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"guard", "base", "target"}
    compose(guard, base, target, tmp_path / "out", include=["norm"])


@pytest.mark.parametrize("lacking", ["guard", "base", "target"])
def test_a_tensor_that_one_of_the_three_lacks_is_a_problem_where_it_is_applied_and_a_note_elsewhere(lacking, tmp_path):
    folders = dict(zip(("guard", "base", "target"), triple(tmp_path, tiny.llama(0)), strict=True))
    tensors = tiny.read(folders[lacking])
    del tensors[CHANGED], tensors["model.norm.weight"]
    tiny.rewrite(folders[lacking], tensors)
    models = open_all(folders.values())
    plan = wo.compose_guard(*models).plan
    have = " and ".join(str(folder) for name, folder in folders.items() if name != lacking)
    assert [p.partition(";")[0] for p in plan.problems] == [f"{CHANGED}: in {have}, not in {folders[lacking]}"]
    assert [note for note in plan.notes if "norm" in note] == [
        f"1 tensors in {have} are not in {folders[lacking]} and are not applied, the first model.norm.weight"
    ]
    wo.compose_guard(*models, exclude=[r"layers\.0\.mlp\.up"]).plan.check()
    included = wo.compose_guard(*models, include=["norm"]).plan.problems
    assert [problem.partition(":")[0] for problem in included] == ["model.norm.weight"]


def test_the_size_of_the_change_does_not_depend_on_adapters_of_the_target(tmp_path):
    """|V| is that of guard - base; where the guard is the base and an adapter, that of the adapter's product."""
    base = tiny.write(tmp_path / "base", tiny.llama(0))
    names = ["model.layers.0.mlp.up_proj.weight", "model.layers.1.self_attn.q_proj.weight"]
    adapters = [tiny.lora(tmp_path / f"lora{seed}", tiny.read(base), names, seed) for seed in (1, 2)]
    guard, plain, target = open_all([f"{base}+{adapters[0]}", base, f"{base}+{adapters[1]}"])
    composition = wo.compose_guard(guard, plain, target)
    saved = save(composition.plan, composition.package, tmp_path / "out", progress=False)
    rows = {row.group: row for row in composition.report(saved.tally)}
    b = {name: tensor.double() for name, tensor in tiny.read(base).items()}
    for group, part, name in (("mlp", "mlp", names[0]), ("attention", "self_attn", names[1])):
        vector = (guard - plain).tensor(name).double().norm().item()
        size = sqrt(sum(b[n].square().sum().item() for n in b if part in n))
        assert rows[group].vector == pytest.approx(vector, rel=1e-5)
        assert rows[group].ratio == pytest.approx(vector / size, rel=1e-5)
    assert (rows["norm"].vector, rows["norm"].ratio) == (0.0, 0.0)


def test_a_composition_saves_itself(tmp_path):
    models = open_all(triple(tmp_path, tiny.llama(0)))
    out = wo.compose_guard(*models).save(tmp_path / "one", progress=False)
    assert out == tmp_path / "one"
    composition = wo.compose_guard(*models)
    save(composition.plan, composition.package, tmp_path / "two", progress=False)
    assert tiny.files_of(tmp_path / "one") == tiny.files_of(tmp_path / "two")


def test_a_composition_shows_itself_in_one_line(tmp_path):
    models = {
        name: tiny.write(tmp_path / name, tiny.llama(seed)) for seed, name in enumerate(("guard", "base", "mine"))
    }
    composition = wo.compose_guard(*open_all(list(models.values())), scale=0.5)
    assert repr(composition) == (
        f"<Composition: {models['mine']} + 0.5 * ({models['guard']} - {models['base']}), 14 of 21 tensors>"
    )


def test_include_replaces_the_default_choice_and_exclude_takes_away(tmp_path):
    guard, base, target = triple(tmp_path, tiny.llama(0))
    compose(guard, base, target, tmp_path / "out", include=["norm", r"layers\.1\."], exclude=["mlp"])
    g, b, t = (tiny.read(folder) for folder in (guard, base, target))
    for name, tensor in tiny.read(tmp_path / "out").items():
        chosen = ("norm" in name or "layers.1." in name) and "mlp" not in name
        expected = tiny.composed(t[name], g[name], b[name], 1.0) if chosen else t[name]
        assert tiny.same_bytes(tensor, expected), name


def test_the_report_gives_the_norms_of_the_vector_by_group_applied_or_dropped(tmp_path):
    guard, base, target = triple(tmp_path, tiny.llama(0))
    composition = wo.compose_guard(*open_all([guard, base, target]))
    saved = save(composition.plan, composition.package, tmp_path / "out", progress=False)
    g, b = (tiny.cast(tiny.read(folder), torch.float64) for folder in (guard, base))
    rows = {row.group: row for row in composition.report(saved.tally)}
    assert {name: row.applied for name, row in rows.items()} == {
        "attention": True,
        "mlp": True,
        "norm": False,
        "embedding": False,
        "head": False,
    }
    members = {"attention": "self_attn", "mlp": "mlp", "norm": "norm", "embedding": "embed", "head": "lm_head"}
    for group, part in members.items():
        names = [name for name in g if part in name]
        vector = sqrt(sum((g[name] - b[name]).square().sum().item() for name in names))
        size = sqrt(sum(b[name].square().sum().item() for name in names))
        assert rows[group].tensors == len(names)
        assert rows[group].vector == pytest.approx(vector, rel=1e-6)
        assert rows[group].ratio == pytest.approx(vector / size, rel=1e-6)
    planned = {row.group: row for row in composition.report()}
    assert planned.keys() == rows.keys()
    assert all(row.vector is None for row in planned.values())


def test_integer_tensors_that_agree_are_copied_wherever_they_stand(tmp_path):
    base = tiny.llama(0)
    beside = {"model.embed_tokens.position_ids": torch.arange(4), "model.layers.0.self_attn.mask": torch.ones(3) > 0}
    folders = [
        tiny.write(tmp_path / name, tiny.perturbed(base, seed) | beside)
        for name, seed in (("guard", 1), ("base", 2), ("target", 3))
    ]
    compose(*folders, tmp_path / "out")
    result = tiny.read(tmp_path / "out")
    assert all(tiny.same_bytes(result[name], tensor) for name, tensor in beside.items())


def test_no_tensor_in_common_is_an_error_that_names_the_three(tmp_path):
    guard, base, target = triple(tmp_path, tiny.llama(0))
    other = tiny.write(tmp_path / "other", {f"x.{name}": t for name, t in tiny.read(target).items()})
    composition = wo.compose_guard(*open_all([guard, base, other]))
    with pytest.raises(WeightopsError, match=r"no tensor name is common .*guard.*base.*other"):
        composition.plan.check()


def test_a_scope_that_leaves_nothing_is_an_error(tmp_path):
    models = open_all(triple(tmp_path, tiny.llama(0)))
    with pytest.raises(WeightopsError, match="no tensor is left to apply"):
        wo.compose_guard(*models, include=["nowhere"]).plan.check()
    with pytest.raises(WeightopsError, match=r"include '\(' is not a regular expression"):
        wo.compose_guard(*models, include=["("])


@pytest.mark.slow
def test_on_smollm2_composition_is_the_fp32_formula_rounded_once(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = wo.open("smollm2-135m-instruct")
    folder = base.source.folder
    weights = tiny.read(folder)
    guard = tiny.copy(folder, tmp_path / "guard")
    tiny.rewrite(guard, tiny.perturbed(weights, 1, 0.001))
    half = base + 0.5 * (wo.open(guard) - base)
    target = half.save(tmp_path / "target", progress=False)
    compose(guard, folder, target, tmp_path / "out", scale=1.3)
    g, t = tiny.read(guard), tiny.read(target)
    for name, tensor in tiny.read(tmp_path / "out").items():
        expected = t[name] if tiny.left_out(name) else tiny.composed(t[name], g[name], weights[name], 1.3)
        assert tiny.same_bytes(tensor, expected), name
    model, words = (kind.from_pretrained(tmp_path / "out") for kind in (AutoModelForCausalLM, AutoTokenizer))
    inputs = words.apply_chat_template(
        [{"role": "user", "content": "Say yes."}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    assert model.generate(**inputs, max_new_tokens=3, do_sample=False).shape[1] > inputs["input_ids"].shape[1]
