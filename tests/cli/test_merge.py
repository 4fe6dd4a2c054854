"""``weightops merge``: what it prints and writes, and every bad input as one line with its place and nothing written."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import tiny_models as tiny
import torch
from click.testing import CliRunner
from merge_files import config_of, family, quiet

from weightops.cli import main
from weightops.output.provenance import verify

TWO = "models:\n  - model: {a}\n  - model: {b}\n"
BASED = "base_model: {base}\n" + TWO
TIES = "merge_method: ties\n" + BASED
LINEAR = "merge_method: linear\n" + TWO


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    """Good models, and some that are not."""
    root = tmp_path_factory.mktemp("models")
    made = family(root, ["base", "a", "b"], layers=2)
    config = config_of(made["base"])
    made["narrow"] = tiny.write(root / "narrow", tiny.llama(1, hidden=8, layers=2, dtype=torch.float32), config=config)
    tiny.tokenizer(made["narrow"])
    for name, value in (("nan", float("nan")), ("inf", float("inf"))):
        tensors = tiny.read(made["b"])
        tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = value
        made[name] = tiny.copy(made["b"], root / name)
        tiny.rewrite(made[name], tensors)
    return made


@pytest.fixture
def run(models, tmp_path):
    """Run a merge file; the result, after a look at what stands beside it."""

    def invoke(text: str, *args: str, code: int = 0, out: str = "out"):
        for name, folder in models.items():
            text = text.replace(f"{{{name}}}", str(folder))
        file = tmp_path / "merge.yml"
        file.write_text(text)
        before = {path.name for path in tmp_path.iterdir()}
        done = CliRunner().invoke(main, ["merge", str(file), str(tmp_path / out), *args])
        assert done.exit_code == code, done.output
        if code:
            assert {path.name for path in tmp_path.iterdir()} == before, "something was written"
            assert "Traceback" not in done.output
        return done

    return invoke


def errors(done) -> list[str]:
    """The lines about problems; all others are notes."""
    lines = done.stderr.splitlines()
    assert all(line.startswith(("error: ", "note: ")) for line in lines)
    return [line for line in lines if line.startswith("error: ")]


# --- what it does ----------------------------------------------------------------------------------------------------


def test_a_merge_is_written_and_said(run, models, tmp_path):
    done = run(TIES)
    written = tiny.read(tmp_path / "out")
    assert done.stdout.startswith(f"wrote {tmp_path / 'out'} (")
    assert f"{len(written)} tensors" in done.stdout
    assert written.keys() == tiny.read(models["base"]).keys()
    assert verify(tmp_path / "out") == []
    assert {path.name for path in tmp_path.iterdir()} == {"merge.yml", "out"}


def test_for_a_program_the_result_is_json(run, tmp_path):
    printed = json.loads(run(TIES, "--json").stdout)
    assert printed["out"] == str(tmp_path / "out")
    assert printed["tensors"] == len(tiny.read(tmp_path / "out"))
    assert printed["bytes"] == (tmp_path / "out" / "model.safetensors").stat().st_size


@pytest.mark.parametrize("json_too", [False, True])
def test_a_dry_run_says_what_would_be_done_and_writes_nothing(run, models, tmp_path, json_too):
    done = run(TIES, "--dry-run", *["--json"] * json_too)
    assert {path.name for path in tmp_path.iterdir()} == {"merge.yml"}
    count = len(tiny.read(models["base"]))
    if json_too:
        printed = json.loads(done.stdout)
        assert printed["problems"] == []
        assert len(printed["tensors"]) == count
        assert printed["bytes_written"] == printed["files"]["model.safetensors"]
        run(TIES)
        assert printed["bytes_written"] == (tmp_path / "out" / "model.safetensors").stat().st_size
    else:
        assert f"ties: {count} tensors" in done.stdout
        assert "reads" in done.stdout
        assert "writes" in done.stdout


def test_a_dry_run_of_a_plan_with_problems_says_them_and_fails(run):
    done = run("merge_method: linear\nmodels: [{model: {a}}, {model: {narrow}}]\n", "--dry-run", "--json", code=1)
    assert json.loads(done.stdout)["problems"]


def test_a_dry_run_cannot_see_through_documents_that_are_not_made(run):
    done = run("name: one\n" + LINEAR + "---\nmerge_method: linear\nmodels: [{model: one}, {model: {a}}]\n",
               "--dry-run", code=2)  # fmt: skip
    assert "one" in done.output


def test_a_seed_is_the_same_merge_and_another_seed_is_not(run, tmp_path):
    text = "merge_method: dare_ties\n" + BASED + "parameters: {density: 0.5}\n"
    for out, seed in (("one", "3"), ("two", "3"), ("three", "4")):
        run(text, "--seed", seed, out=out)
    one, two, three = (tiny.read(tmp_path / out) for out in ("one", "two", "three"))
    assert all(tiny.same_bytes(two[name], value) for name, value in one.items())
    assert not all(tiny.same_bytes(three[name], value) for name, value in one.items())


def test_notes_go_to_stderr_and_shards_are_cut(run, tmp_path):
    done = run(TIES + "parameters: {t: 0.3}\n", "--shard-size", "9kB")
    assert f"note: {tmp_path / 'merge.yml'}:6: 't' has no effect with ties" in done.stderr
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    assert (tmp_path / "out" / "model.safetensors.index.json").exists()
    assert verify(tmp_path / "out") == []


def test_an_output_is_replaced_only_when_asked(run, tmp_path):
    run(LINEAR)
    before = tiny.files_of(tmp_path / "out")
    done = run(TIES, code=1)
    assert done.stderr == (
        f"error: {tmp_path / 'out'}: exists already; choose another OUT, or replace it with --overwrite\n"
    )
    assert tiny.files_of(tmp_path / "out") == before
    run(TIES, "--overwrite")
    assert tiny.files_of(tmp_path / "out") != before


# --- bad input -------------------------------------------------------------------------------------------------------

#: The file, and what is said of it: line number (0: no line of the file is at fault) and part of the message.
BAD: dict[str, tuple[str, list[tuple[int, str]]]] = {
    "a parameter out of range": (TIES + "parameters: {density: 1.5}\n", [(6, "density must be in [0, 1], not 1.5")]),
    "one out of range in a gradient": (
        TIES + "parameters:\n  density: [0.5, -1]\n", [(7, "density must be in [0, 1], not -1")]
    ),
    "a parameter of another kind": (TIES + "parameters: {normalize: 3.5}\n", [(6, "normalize")]),
    "a parameter that a method needs": ("merge_method: slerp\nbase_model: {base}\nmodels: [{model: {a}}]\n", [(1, "t")]),
    "a method without its base": ("merge_method: ties\n" + TWO, [(1, "ties needs a base model; name it with base_model")]),
    "two inputs where three are needed": (
        "merge_method: model_stock\nbase_model: {base}\nmodels: [{model: {a}}]\n",
        [(3, "model_stock merges at least 2 models besides the base; 1 given")],
    ),
    "three inputs where two are needed": (
        "merge_method: nuslerp\nmodels: [{model: {a}}, {model: {b}}, {model: {base}}]\n",
        [(2, "nuslerp merges at most 2 models; 3 given")],
    ),
    "a gradient that meets no layer": (
        TIES + "parameters:\n  density:\n    - {filter: lm_head, value: [0.1, 0.5]}\n    - value: 0.5\n",
        [(8, "a list of 2 values over the layers applies only to tensors outside them (first: lm_head.weight)")],
    ),
    "unknown keys": (
        TIES + "dtyp: float32\nparameters: {densty: 1}\ndtype: 3\n",
        [(8, "unknown dtype 3")],
    ),
    "an unknown method": ("merge_method: tise\n" + BASED, [(1, "unknown merge method 'tise' (did you mean 'ties'?)")]),
    "an unknown dtype": (LINEAR + "dtype: float23\n", [(5, "unknown dtype 'float23' (did you mean 'float32'?)")]),
    "models that are not there": (
        "merge_method: linear\nmodels:\n  - model: /nowhere/x\n  - model: /nowhere/y\n",
        [(3, "/nowhere/x: no such file or folder"), (4, "/nowhere/y: no such file or folder")],
    ),
    "a base that is not there": (
        "merge_method: ties\nbase_model: /nowhere/base\n" + TWO, [(2, "/nowhere/base: no such file or folder")]
    ),
    "an adapter that is not there": (
        "merge_method: linear\nmodels:\n  - model: {a}\n  - model: {b}+/nowhere/lora\n",
        [(4, "/nowhere/lora: no such file or folder")],
    ),
    "a tokenizer that is not there": (LINEAR + "tokenizer_source: /nowhere/t\n", [(5, "/nowhere/t: no such file")]),
    "layers that are not there": (
        "merge_method: passthrough\nslices:\n  - sources:\n      - {model: {a}, layer_range: [0, 9]}\n",
        [(4, "has 2 layers; layer_range [0, 9] goes beyond them")],
    ),
    "a tag that makes objects": (
        "merge_method: !!python/object/apply:os.system ['touch /tmp/weightops-was-here']\n", [(1, "is not allowed")]
    ),
    "a tag of another maker": ("merge_method: linear\nmodels: !mine []\n", [(2, "tag !mine is not allowed")]),
    "what is not YAML": ("merge_method: [linear\nmodels: {\n", [(2, "")]),
    "a file for another tool": ("experts: []\n", [(1, "run it with weightops moe")]),
    "nothing": ("", [(1, "the file is empty")]),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_said_with_its_line_and_nothing_is_written(run, tmp_path, case):
    text, expected = BAD[case]
    lines = errors(run(text, code=1))
    for number, message in expected:
        place = f"error: {tmp_path / 'merge.yml'}:{number}: "
        assert any(line.startswith(place) and message in line for line in lines), "\n".join(lines)
    assert not Path("/tmp/weightops-was-here").exists()


def test_a_yaml_bomb_is_refused_at_once(run):
    levels = "".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]\n" for i in range(1, 12))
    begin = time.monotonic()
    done = run(f"l0: &l0 [a, a, a, a, a, a, a, a, a]\n{levels}" + LINEAR, code=1)
    assert time.monotonic() - begin < 30
    assert "values" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("method", ["linear", "ties", "karcher"])
def test_shapes_that_differ_are_all_in_the_plan(run, models, method):
    base = "base_model: {base}\n" if method == "ties" else ""
    done = run(f"merge_method: {method}\n{base}models: [{{model: {{a}}}}, {{model: {{narrow}}}}]\n", code=1)
    lines = errors(done)
    assert all("narrow" in line for line in lines)
    assert "model.embed_tokens.weight" in done.stderr or "differ" in done.stderr
    assert "(24, 8)" in done.stderr
    assert "(24, 16)" in done.stderr


@pytest.mark.parametrize("bad", ["nan", "inf"])
@pytest.mark.parametrize("method", ["linear", "ties", "slerp", "karcher", "arcee_fusion"])
def test_a_tensor_that_is_not_finite_is_named_and_leaves_nothing(run, models, tmp_path, bad, method):
    base = "" if method in ("linear", "karcher") else "base_model: {base}\n"
    listed = "{model: {a}}, " if method in ("linear", "karcher", "ties") else ""
    more = "parameters: {t: 0.5}\n" if method == "slerp" else ""
    text = f"merge_method: {method}\n{base}models: [{listed}{{model: {{{bad}}}}}]\n{more}"
    (line,) = errors(run(text, code=1))
    assert str(models[bad] / "model.safetensors") in line
    assert "model.layers.1.mlp.up_proj.weight" in line
    assert "--allow-nonfinite" in line
    if method == "linear":
        run(text, "--allow-nonfinite")
        assert not tiny.read(tmp_path / "out")["model.layers.1.mlp.up_proj.weight"].isfinite().all()


def lora(model: Path, folder: Path, **how) -> Path:
    import peft
    from transformers import AutoModelForCausalLM

    with quiet():
        made = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(model), peft.LoraConfig(r=2, **how))
        made.save_pretrained(folder)
    return folder


def test_an_adapter_for_another_base_is_refused(run, tmp_path, models):
    deeper = family(tmp_path / "deeper", ["base"], layers=3)["base"]
    adapter = lora(deeper, tmp_path / "lora", target_modules=["q_proj"])
    done = run(f"merge_method: linear\nmodels: [{{model: {{a}}}}, {{model: {{b}}+{adapter}}}]\n", code=1)
    assert (
        f"{adapter}: changes model.layers.2.self_attn.q_proj.weight, which {models['b']} does not have" in done.stderr
    )
    assert "this adapter is for another base" in done.stderr


def test_an_adapter_of_other_shapes_is_refused(run, tmp_path):
    adapter = lora(family(tmp_path / "other", ["base"], layers=2, vocab=30)["base"], tmp_path / "lora",
                   target_modules=["lm_head"])  # fmt: skip
    for method, base in (("linear", ""), ("ties", "base_model: {base}\n")):
        done = run(f"merge_method: {method}\n{base}models: [{{model: {{a}}}}, {{model: {{b}}+{adapter}}}]\n", code=1)
        (line,) = errors(done)
        assert "lm_head.weight" in line
        assert "(30, 16)" in line


def test_an_adapter_alone_is_merged_on_the_base_it_names(run, tmp_path, models):
    adapter = lora(models["a"], tmp_path / "lora", target_modules=["q_proj"])
    merges = []
    for name in (adapter, f"{models['a']}+{adapter}"):
        run(f"merge_method: linear\nmodels:\n  - model: {{b}}\n  - model: {name}\n", "--overwrite")
        merges.append((tmp_path / "out" / "model.safetensors").read_bytes())
    assert merges[0] == merges[1]


def test_a_device_that_is_not_there_is_said_in_the_plan(run):
    for device in ("cuda:7", "banana"):
        (line,) = run("merge_method: wudi\n" + BASED, "--device", device, code=1).stderr.splitlines()
        assert line.startswith(f"error: the device {device!r} cannot be used: ")


def test_a_device_that_nothing_computes_on_is_a_note(run):
    done = run(TIES, "--device", "meta", "--dry-run")
    assert "note: the device 'meta' is not used: this merge runs on the CPU; methods that use a device: " in done.stderr
    assert "tsv_m" in done.stderr
    assert "note: the device" not in run("merge_method: wudi\n" + BASED, "--device", "meta", "--dry-run", code=1).stderr
    assert "note: the device" not in run(TIES, "--device", "cpu", "--dry-run").stderr


def test_a_file_that_is_not_there_is_one_line(tmp_path):
    done = CliRunner().invoke(main, ["merge", str(tmp_path / "none.yml"), str(tmp_path / "out")])
    assert done.exit_code == 1
    assert done.stderr.startswith(f"error: {tmp_path / 'none.yml'}: cannot read the merge file")
    assert len(done.stderr.splitlines()) == 1


def test_a_plugin_that_is_not_there_is_one_line(run):
    (line,) = run(LINEAR, "--plugin", "/nowhere/plugin.py", code=1).stderr.splitlines()
    assert line.startswith("error: /nowhere/plugin.py: not a Python file")


def test_an_output_inside_an_input_is_refused(run, models):
    out = models["a"] / "inside"
    done = run(LINEAR, code=1, out=str(out))
    assert "the output would be inside the input" in done.stderr
    assert not out.exists()


# --- mergekit's engine -----------------------------------------------------------------------------------------------

MOE = """\
base_model: {base}
gate_mode: random
dtype: float32
experts:
  - source_model: {a}
    positive_prompts: [hello]
  - source_model: {b}
    positive_prompts: [python]
"""


@pytest.mark.slow
def test_a_mixture_of_experts_is_made_by_mergekit(run, tmp_path):
    pytest.importorskip("mergekit")
    assert run(MOE, "--engine", "mergekit").stdout == f"wrote {tmp_path / 'out'} (by the mergekit package)\n"
    assert config_of(tmp_path / "out")["model_type"] == "mixtral"
    assert {path.name for path in tmp_path.iterdir()} == {"merge.yml", "out"}
    assert "exists already" in run(MOE, "--engine", "mergekit", code=1).stderr


@pytest.mark.slow
def test_what_mergekit_refuses_leaves_nothing(run):
    pytest.importorskip("mergekit")
    done = run("merge_method: nonsense\nmodels: [{model: {a}}]\n", "--engine", "mergekit", code=1)
    assert "mergekit ended with code" in done.stderr


def test_the_mergekit_engine_does_not_take_what_only_ours_can_do(run):
    for option in (["--device", "cuda"], ["--dry-run"], ["--plugin", "x.py"]):
        done = run(TIES, "--engine", "mergekit", *option, code=2)
        assert "work only with --engine native" in done.stderr
