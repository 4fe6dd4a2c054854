"""A checkpoint in FP8 is the bf16 checkpoint that transformers dequantises it to, in everything that takes one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_fp8
import tiny_models as tiny
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

import weightops as wo
from weightops.algebra.loading import load_model
from weightops.cli import main
from weightops.engine.exact_reads import read_tensor
from weightops.errors import WeightopsError
from weightops.guard.compose import compose_guard
from weightops.io.folder import read_json
from weightops.merge import run as merging
from weightops.merge.build import Options
from weightops.output.provenance import verify

UP = "model.layers.0.mlp.up_proj.weight"
SCALES = f"{UP}_scale_inv"


@pytest.fixture
def pair(tmp_path) -> Callable[..., tuple[Path, Path]]:
    """A model in FP8, in shards that part numbers from scales, and the bf16 model with its dequantised weights."""

    def make(name: str, tensors: tiny.Tensors, block: tuple[int, int] | None = tiny_fp8.BLOCK) -> tuple[Path, Path]:
        stored = tiny_fp8.in_fp8(tensors, block)
        one = tiny.write(tmp_path / f"{name}-fp8", stored, shards=3, config=tiny_fp8.config_of(block))
        return one, tiny.write(tmp_path / f"{name}-bf16", tiny_fp8.plain(stored, block))

    return make


@pytest.fixture
def three(pair) -> list[tuple[Path, Path]]:
    first = tiny.llama(0, hidden=24)  # 24 rows are no whole number of blocks
    return [pair(str(seed), first if not seed else tiny.perturbed(first, seed)) for seed in range(3)]


def same_weights(one: Path, other: Path) -> bool:
    return tiny.read(one).keys() == tiny.read(other).keys() and all(
        tiny.same_bytes(tensor, tiny.read(other)[name]) for name, tensor in tiny.read(one).items()
    )


@pytest.mark.parametrize("block", [tiny_fp8.BLOCK, (7, 5), None], ids=str)
def test_its_tensors_are_those_of_the_bf16_model_and_scales_are_none_of_them(pair, block):
    fp8, bf16 = pair("m", tiny.llama(0), block)
    wanted = tiny.read(bf16)
    model = wo.open(fp8)
    assert set(model.names) == set(wanted)
    assert all(tiny.same_bytes(model.tensor(name), tensor) for name, tensor in wanted.items())
    assert "quantization_config" not in model.source.config


OPERATIONS: dict[str, Callable[[list[Path], Path], object]] = {
    "save": lambda m, out: wo.open(m[0]).save(out, progress=False),
    "arithmetic": lambda m, out: (wo.open(m[0]) + 0.5 * (wo.open(m[1]) - wo.open(m[2]))).save(out, progress=False),
    "average": lambda m, out: wo.average(m).save(out, progress=False),
    "ties": lambda m, out: (
        wo.ties([wo.open(m[1]) - wo.open(m[0]), wo.open(m[2]) - wo.open(m[0])], density=0.5)
        .on(wo.open(m[0]))
        .save(out, progress=False)
    ),
    "guard": lambda m, out: compose_guard(*map(wo.open, m)).save(out, progress=False),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_gives_the_bytes_that_it_gives_on_the_bf16_models(operation, three, tmp_path):
    run = OPERATIONS[operation]
    run([fp8 for fp8, _ in three], tmp_path / "one")
    run([bf16 for _, bf16 in three], tmp_path / "other")
    assert same_weights(tmp_path / "one", tmp_path / "other")
    config = read_json(tmp_path / "one/config.json")
    assert "quantization_config" not in config
    sources = [read_json(tmp_path / side / "weightops.json")["sources"] for side in ("one", "other")]
    assert [source["content"] for source in sources[0]] == [source["content"] for source in sources[1]]
    assert verify(tmp_path / "one") == []


def test_a_sparse_delta_fits_the_model_in_both_forms(three, tmp_path):
    (fp8, bf16), (tuned, _), _ = three
    delta = tmp_path / "d.safetensors"
    wo.extract_sparse(fp8, tuned, exact=True).save(delta, progress=False)
    wo.open(tuned).save(tmp_path / "tuned", progress=False)
    for base in (fp8, bf16):
        out = wo.open(f"{base}+{delta}").save(tmp_path / f"on-{base.name}", progress=False)
        assert same_weights(out, tmp_path / "tuned")


def test_slices_and_memory_do_not_change_it(three, tmp_path, monkeypatch):
    fp8 = [one for one, _ in three]
    for threads in (1, 3):
        wo.average(fp8).save(tmp_path / f"{threads}", progress=False, threads=threads, dtype="fp8-block")
    assert same_weights(tmp_path / "1", tmp_path / "3")


def test_what_is_not_changed_is_copied_to_the_same_layout(three, tmp_path):
    (fp8, _), (other, _), _ = three
    model = wo.open(fp8) + (wo.open(other) - wo.open(fp8)).only(r"layers\.1")
    model.save(tmp_path / "out", dtype="fp8-block", progress=False)
    written, stored = tiny.read(tmp_path / "out"), tiny.read(fp8)
    assert written.keys() == stored.keys()
    assert all(tiny.same_bytes(tensor, stored[name]) for name, tensor in written.items() if "layers.1" not in name)
    assert read_json(tmp_path / "out/config.json") == read_json(fp8 / "config.json")
    assert verify(tmp_path / "out") == []


@pytest.mark.parametrize("scale_fmt", ["float", "ue8m0"])
def test_what_is_changed_is_rounded_once_from_fp32_as_transformers_rounds_it(scale_fmt, pair, tmp_path):
    from types import SimpleNamespace

    from transformers import FineGrainedFP8Config
    from transformers.integrations.finegrained_fp8 import Fp8Quantize

    config = FineGrainedFP8Config(weight_block_size=tiny_fp8.BLOCK, scale_fmt=scale_fmt)
    folders = [pair(str(seed), tiny.llama(seed))[0] for seed in range(3)]
    for folder in folders:
        text = tiny_fp8.config_of(scale_fmt=scale_fmt)
        (folder / "config.json").write_text(json.dumps(text))
    a, b, c = map(wo.open, folders)
    for result, values in (
        (a + 0.5 * (b - c), lambda x, y, z: x + 0.5 * (y - z)),
        (wo.task_arithmetic([b - a, c - a], weight=0.7).on(a), lambda x, y, z: x + 0.7 * (y - x) + 0.7 * (z - x)),
    ):
        result.save(tmp_path / "out", dtype="fp8-block", progress=False, overwrite=True)
        written = tiny.read(tmp_path / "out")
        exact = values(*(model.tensor(UP).float() for model in (a, b, c)))
        wanted = Fp8Quantize(SimpleNamespace(quantization_config=config))._quantize_one(UP, exact)
        assert torch.equal(written[UP].view(torch.uint8), wanted[UP].view(torch.uint8))
        assert torch.equal(written[SCALES], wanted[SCALES].float())


def test_an_interrupted_run_in_8_bits_resumes_with_the_same_bytes(three, tmp_path, monkeypatch):
    from weightops.io.staging import Staging

    model, record, recorded = wo.average([one for one, _ in three]), Staging.record, []
    model.save(tmp_path / "whole", dtype="fp8-block", progress=False)

    def interrupt(staging, entry):
        record(staging, entry)
        recorded.append(entry)
        if len(recorded) == 6:
            raise KeyboardInterrupt

    monkeypatch.setattr(Staging, "record", interrupt)
    with pytest.raises(KeyboardInterrupt):
        model.save(tmp_path / "out", dtype="fp8-block", progress=False, threads=1)
    model.save(tmp_path / "out", dtype="fp8-block", progress=False, threads=1)
    assert len({(e["job"], e["block"]) for e in recorded}) == len(recorded)  # nothing was computed twice
    assert same_weights(tmp_path / "out", tmp_path / "whole")
    assert verify(tmp_path / "out") == []


def test_both_forms_load_in_transformers(tmp_path):
    """With the values that weightops reads: transformers has no FP8 without a GPU and dequantises."""
    from transformers import AutoModelForCausalLM

    stored = tiny_fp8.in_fp8(tiny.llama(0, hidden=32))
    shape = {"vocab_size": 24, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "architectures": ["LlamaForCausalLM"]}
    config = tiny_fp8.config_of() | shape | heads | {"dtype": "bfloat16"}
    folder = tiny.write(tmp_path / "m", stored, config=config)
    model = wo.open(folder) + 0.5 * (wo.open(folder) - wo.open(tiny.write(tmp_path / "n", tiny_fp8.plain(stored))))
    for dtype in ("auto", "fp8-block"):
        out = model.save(tmp_path / dtype, dtype=dtype, progress=False)
        loaded = AutoModelForCausalLM.from_pretrained(out).state_dict()
        assert all(tiny.same_bytes(loaded[name], wo.open(out).tensor(name)) for name in model.names)
    ours = load_model(wo.open(folder))
    assert tiny.same_bytes(ours.state_dict()[UP], wo.open(folder).tensor(UP))


def test_plain_fp8_without_any_scale_is_its_numbers(tmp_path):
    tensors = {"a.weight": torch.randn(5, 3).to(torch.float8_e5m2), "b": torch.randn(3).to(torch.float8_e4m3fn)}
    model = wo.open(tiny.write(tmp_path / "m", tensors))
    assert all(tiny.same_bytes(model.tensor(n), t.to(torch.bfloat16)) for n, t in tensors.items())


def scheme(strategy: str, **more: object) -> dict[str, object]:
    weights = {"num_bits": 8, "type": "float", "strategy": strategy, **more}
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": weights}}}


@pytest.mark.parametrize(
    ("config", "name", "scales"),
    [
        (scheme("tensor"), "weight_scale", torch.tensor([0.5], dtype=torch.bfloat16)),
        (scheme("channel"), "weight_scale", torch.rand(12, 1, dtype=torch.bfloat16)),
        (scheme("block", block_structure=[8, 4]), "weight_scale", torch.rand(2, 2)),
        ({"quant_method": "fbgemm_fp8"}, "weight_scale", torch.rand(12, 1)),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "weight_scale", torch.tensor(0.5)),
        (tiny_fp8.quantisation((8, 4)), "scale", torch.rand(2, 2)),
        (
            tiny_fp8.quantisation((8, 4), scale_fmt="ue8m0"),
            "weight_scale_inv",
            torch.rand(2, 2).to(torch.float8_e8m0fnu),
        ),
    ],
)
def test_the_layouts_of_other_tools(config, name, scales, tmp_path):
    codes = torch.randn(12, 6).to(torch.float8_e4m3fn)
    others = {"a.input_scale": torch.tensor(1.0), "x.self_attn.k_scale": torch.tensor(1.0), "b": torch.ones(2)}
    folder = tiny.write(
        tmp_path / "m", {"a.weight": codes, f"a.{name}": scales} | others, config={"quantization_config": config}
    )
    each = scales.float().reshape(-1, scales.shape[-1] if scales.ndim > 1 else 1)
    block = (8, 4) if each.shape == (2, 2) else (12 // each.shape[0], 6)
    model = wo.open(folder)
    assert set(model.names) == {"a.weight", "b"}
    wanted = (codes.float() * tiny_fp8.spread(each, block, codes.shape)).to(torch.bfloat16)
    assert tiny.same_bytes(model.tensor("a.weight"), wanted)


def broken(change: dict[str, torch.Tensor | None], config: dict[str, object] | None = None):
    return change, config


BAD = {
    "scales are missing": ({SCALES: None}, None, f"{UP} is stored in 8 bits (F8_E4M3) without scales; {SCALES} is missing"),
    "another block size": ({}, tiny_fp8.quantisation((8, 8)), "needs (4, 2) (config.json says blocks of 8 x 8)"),
    "another shape": ({SCALES: torch.ones(2, 3)}, None, f"{SCALES} has shape (2, 3), but {UP} of shape (32, 16) needs (2, 2)"),
    "scales of integers": ({SCALES: torch.ones(2, 2, dtype=torch.int32)}, None, "scales of dtype I32"),
    "scales without codes": ({UP: torch.ones(32, 16)}, None, f"{SCALES} belongs to quantised weights that are not in FP8"),
    "no pair": ({}, tiny_fp8.quantisation() | {"weight_block_size": [128]}, "has blocks of [128]; write two whole numbers"),
    "no number": ({}, tiny_fp8.quantisation() | {"weight_block_size": [128, True]}, "write two whole numbers"),
    "no size": ({}, tiny_fp8.quantisation() | {"weight_block_size": "128"}, "has blocks of 128; write two"),
    "zero": ({}, tiny_fp8.quantisation() | {"weight_block_size": [0, 128]}, "write two whole numbers"),
    "fp4": ({}, tiny_fp8.quantisation() | {"expert_dtype": "fp4"}, "quantised weights (fp8, says config.json)"),
    "groups": ({}, {"quant_method": "compressed-tensors", "config_groups": [1]}, "(compressed-tensors, says config.json)"),
    "int8": ({}, scheme("channel", num_bits=4), "(compressed-tensors, says config.json)"),
    "method": ({}, {"quant_method": ["fp8"]}, "quantised weights (['fp8'], says config.json)"),
}  # fmt: skip


@pytest.mark.parametrize("fault", BAD)
def test_files_that_do_not_fit_together_are_one_line_each(fault, tmp_path):
    change, config, says = BAD[fault]
    stored = {n: t for n, t in (tiny_fp8.in_fp8(tiny.llama(0)) | change).items() if t is not None}
    folder = tiny.write(tmp_path / "m", stored, config={"quantization_config": config or tiny_fp8.quantisation()})
    result = CliRunner().invoke(main, ["average", str(folder), "--out", str(tmp_path / "out")])
    lines = [line for line in result.output.splitlines() if line.startswith("error:")]
    assert result.exit_code == 1
    assert says in result.output
    assert 1 <= len(lines) <= 4
    assert "Traceback" not in result.output


def test_many_faults_are_not_many_lines(tmp_path):
    stored = {n: t for n, t in tiny_fp8.in_fp8(tiny.llama(0)).items() if not n.endswith("_scale_inv")}
    with pytest.raises(WeightopsError) as caught:
        wo.open(tiny.write(tmp_path / "m", stored, config=tiny_fp8.config_of()))
    assert len(caught.value.problems) == 4
    assert "11 more such tensors" in caught.value.problems[-1]


@pytest.mark.parametrize("dtype", ["auto", "fp8-block"])
@pytest.mark.parametrize("place", [UP, SCALES])
def test_nan_in_numbers_or_scales_is_refused_by_name(place, dtype, tmp_path):
    stored = tiny_fp8.in_fp8(tiny.llama(0))
    stored[place] = torch.full(stored[place].shape, torch.nan).to(stored[place].dtype)
    folder = tiny.write(tmp_path / "m", stored, config=tiny_fp8.config_of())
    for model in (wo.open(folder), wo.average([folder, tiny.write(tmp_path / "n", tiny.llama(1))])):
        with pytest.raises(WeightopsError, match=place.replace(".", r"\.") + ".* holds NaN or Inf"):
            model.save(tmp_path / "out", dtype=dtype, progress=False)
    assert not (tmp_path / "out").exists()


def test_a_layout_that_no_source_has_is_refused(pair, tmp_path):
    for folder in (tiny.write(tmp_path / "m", tiny.llama(0)), pair("p", tiny.llama(0), None)[0]):
        with pytest.raises(WeightopsError, match="no source stores weights in FP8 with a scale for each block"):
            wo.open(folder).save(tmp_path / "out", dtype="fp8-block", progress=False)


def test_inspect_shows_what_is_stored(three):
    result = CliRunner().invoke(main, ["inspect", str(three[0][0]), "--json"])
    listed = json.loads(result.stdout)
    assert set(listed) == set(tiny.read(three[0][1]))
    assert listed[UP]["dtype"] == "F8_E4M3"
    assert "14 tensors are stored in 8 bits" in result.stderr


def test_a_file_without_a_configuration_has_blocks_of_128(tmp_path):
    codes, scales = tiny_fp8.quantised(torch.randn(130, 200), (128, 128))
    save_file({"a.weight": codes, "a.weight_scale_inv": scales}, tmp_path / "m.safetensors")
    tensor = wo.open(tmp_path / "m.safetensors").source.tensors["a.weight"]
    wanted = (codes.float() * tiny_fp8.spread(scales, (128, 128), codes.shape)).to(torch.bfloat16)
    assert bytes(read_tensor(tensor)) == bytes(wanted.view(torch.uint8).numpy())


MOVED = """
merge_method: passthrough
out_dtype: fp8-block
slices:
  - sources: [{{model: {model}, layer_range: [1, 2]}}]
"""


def test_the_list_of_plain_modules_follows_layers_that_move(tmp_path):
    # Layer 1 keeps one matrix in bf16; in the cut, and in the merge, it is layer 0.
    weights, plain = tiny.llama(0), "model.layers.1.self_attn.q_proj"
    stored = tiny_fp8.in_fp8(weights) | {f"{plain}.weight": weights[f"{plain}.weight"]}
    del stored[f"{plain}.weight_scale_inv"]
    config = tiny_fp8.config_of() | {"num_hidden_layers": 2}
    config["quantization_config"] |= {"modules_to_not_convert": ["lm_head", plain]}
    model = tiny.write(tmp_path / "m", stored, config=config)
    wo.extract(model, [1]).save(tmp_path / "cut", dtype="fp8-block", progress=False)
    merging.merge(merging.from_text(MOVED.format(model=model), "test"), tmp_path / "merged", Options(), progress=False)
    wo.open(model).save(tmp_path / "same", dtype="fp8-block", progress=False)
    lists = {
        name: read_json(tmp_path / name / "config.json")["quantization_config"]["modules_to_not_convert"]
        for name in ("cut", "merged", "same")
    }
    moved = plain.replace("1", "0")
    assert lists == {"cut": ["lm_head", moved], "merged": ["lm_head", moved], "same": ["lm_head", plain]}
    for name in ("cut", "merged"):
        written = tiny.read(tmp_path / name)
        assert all(tiny.same_bytes(written[n.replace("layers.1", "layers.0")], t)
                   for n, t in stored.items() if "layers.1" in n)  # fmt: skip
