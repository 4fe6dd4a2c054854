"""Bad input: exit code 1, one line that names file, tensor and remedy, no output, inputs as they were."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_models as tiny
import torch
from click.testing import CliRunner

from weightops.cli import main

UP = "model.layers.0.mlp.up_proj.weight"
EMBEDDINGS = "model.embed_tokens.weight"
ROLES = ["guard", "base", "target"]
WEIGHTOPS = [sys.executable, "-c", "from weightops.cli import main; main()"]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder with guard, base and target."""
    base = tiny.llama(0)
    for seed, name in enumerate(ROLES):
        tiny.write(tmp_path / "models" / name, tiny.perturbed(base, seed))
    return tmp_path / "models"


def arguments(models: Path, *more: str, out: str | Path = "out", **sources: object) -> list[str]:
    """The command line of compose-guard."""
    named = {name: str(models / name) for name in ROLES} | {k: str(v) for k, v in sources.items()}
    return ["compose-guard", *(f"--{k}={v}" for k, v in named.items()), f"--out={models.parent / out}", *more]


def refused(models: Path, *says: str, args: list[str] | None = None) -> str:
    """Run; check the exit code, the one line and what is left; give the line."""
    before, around = tiny.files_of(models), sorted(os.listdir(models.parent))
    result = CliRunner().invoke(main, args or arguments(models))
    assert result.exit_code == 1, result.output
    (line,) = result.stderr.splitlines()
    assert result.stdout == ""
    assert line.startswith("error: ")
    assert "Traceback" not in line
    assert "bug in weightops" not in line
    for text in says:
        assert text in line, line
    assert tiny.files_of(models) == before
    assert sorted(os.listdir(models.parent)) == around
    return line


def change(models: Path, role: str, **tensors: torch.Tensor) -> Path:
    """Other tensors in a model; the file."""
    tiny.write(models / role, tiny.read(models / role) | tensors)
    return models / role / "model.safetensors"


def rewrite_header(file: Path, edit: Callable[[dict], object], length: int | None = None) -> None:
    """Another header before the same data."""
    raw = file.read_bytes()
    old = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:old])
    edited = edit(header)
    text = edited if isinstance(edited, bytes) else json.dumps(header).encode()
    file.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + raw[old:])


def test_the_same_models_without_a_fault_compose(models):
    result = CliRunner().invoke(main, ["--quiet", *arguments(models)])
    assert (result.exit_code, result.stderr) == (0, "")


@pytest.mark.parametrize("role", ROLES)
def test_a_shape_mismatch_inside_the_common_set(role, models):
    file = change(models, role, **{UP: torch.ones(8, 16).bfloat16()})
    mine, theirs = ("(8, 16)", "(32, 16)") if role != "target" else ("(32, 16)", "(8, 16)")
    where = models / "guard/model.safetensors" if role == "target" else file
    refused(models, f"{UP}: shape {mine} in {where}, {theirs} in the output", "must share an architecture")


def test_many_mismatches_are_one_line_and_dry_run_lists_them_all(models):
    tiny.write(models / "guard", tiny.llama(0, hidden=32))
    refused(models, "must share an architecture (and ", " more; --dry-run lists them)")
    result = CliRunner().invoke(main, arguments(models, "--dry-run"))
    assert (result.exit_code, result.stdout) == (1, "")
    problems = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(problems) == sum("layers" in name and "norm" not in name for name in tiny.llama(0))


def test_no_common_parameter(models):
    tiny.write(models / "target", {f"x.{name}": tensor for name, tensor in tiny.llama(0).items()})
    refused(models, "no tensor name is common to", "must share an architecture")


@pytest.mark.parametrize("role", ROLES)
def test_a_missing_shard(role, models):
    tensors = tiny.read(models / role)
    (models / role / "model.safetensors").unlink()
    tiny.write(models / role, tensors, shards=3)
    gone = models / role / "model-00002-of-00003.safetensors"
    gone.unlink()
    refused(models, f"{gone}: missing", "model.safetensors.index.json", "download the shard again")


LIES = {
    "out of range": (lambda h: h[UP].update(data_offsets=[0, 10**9]), "are outside the file's"),
    "overlapping": (lambda h: h.update({"z": h[UP]}), "z: overlaps the tensor before it"),
    "unknown dtype": (lambda h: h[UP].update(dtype="BF15"), f"{UP}: unknown dtype 'BF15'; supported: BOOL"),
    "negative shape": (lambda h: h[UP].update(shape=[-1, 16]), f"{UP}: the shape is not a list of lengths"),
    "other size": (lambda h: h[UP].update(shape=[31, 16]), f"{UP}: BF16 of shape (31, 16) needs 992 bytes"),
    "hole": (lambda h: h.pop(UP), "unused; the header is damaged"),
    "twice": (lambda h: json.dumps(h)[:-1].encode() + b"," + json.dumps({UP: h[UP]})[1:].encode(), f"{UP} is listed twice"),
    "not json": (lambda h: b"{" * 50, "is not valid JSON"),
    "line break in a name": (lambda h: h.update({"a\nb": {"dtype": "?"}}), r"a\nb: an entry needs dtype"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("role", ["guard", "target"])
def test_a_lying_header(role, lie, models):
    edit, says = LIES[lie]
    file = models / role / "model.safetensors"
    rewrite_header(file, edit)
    line = refused(models, str(file), says)
    assert "download" in line or "supported:" in line


@pytest.mark.parametrize("length", [2**63, 10**8 + 1, 10**6])
def test_a_header_of_huge_length(length, models):
    file = models / "base/model.safetensors"
    rewrite_header(file, dict, length)
    refused(
        models, f"{file}: not a complete safetensors file (the header should have {length} bytes", "download it again"
    )


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_truncated_file(keep, models):
    file = models / "base/model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    refused(models, str(file), "download")


def test_an_index_that_names_a_tensor_its_shard_has_not(models):
    index = models / "guard/model.safetensors.index.json"
    (models / "guard/model.safetensors").rename(models / "guard/a.safetensors")
    index.write_text(json.dumps({"weight_map": {UP: "a.safetensors", "ghost": "a.safetensors"}}))
    refused(models, f"{index}: ghost is not in a.safetensors", "download both again")


@pytest.mark.parametrize("name", ["../guard/model.safetensors", "/etc/passwd", "link.safetensors"])
def test_an_index_that_leads_out_of_its_folder(name, models):
    tensors = tiny.read(models / "target")
    (models / "target/model.safetensors").unlink()
    (models / "target/link.safetensors").symlink_to(models / "guard/model.safetensors")
    (models / "target/model.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict.fromkeys(tensors, name)})
    )
    refused(models, str(models / "target"), "outside the folder" if "/" in name else "a link out of its folder")


def test_quantised_weights_by_their_config(models):
    (models / "guard/config.json").write_text(json.dumps({"quantization_config": {"quant_method": "gptq"}}))
    refused(models, f"{models / 'guard'}: quantised weights (gptq, says config.json)", "model.dequantize()")


@pytest.mark.parametrize("suffix", ["qweight", "weight_scale_inv", "absmax", "SCB"])
def test_quantised_weights_by_what_stands_beside_them(suffix, models):
    file = change(models, "base", **{f"model.layers.0.mlp.up_proj.{suffix}": torch.ones(3)})
    refused(models, f"{file}: model.layers.0.mlp.up_proj.{suffix} belongs to quantised weights", "model.dequantize()")


@pytest.mark.parametrize(
    ("role", "name"),
    [  # the target's embeddings are copied as they are, whatever they hold
        (role, name) for role in ROLES for name in (UP, EMBEDDINGS) if (role, name) != ("target", EMBEDDINGS)
    ],
)
def test_quantised_weights_by_their_dtype(role, name, models):
    file = change(models, role, **{name: torch.ones(32, 16).to(torch.float8_e8m0fnu)})
    refused(models, f"{file}: {name} is quantised (F8_E8M0)", "model.dequantize()")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", [UP, "model.embed_tokens.weight", "model.norm.weight"])
@pytest.mark.parametrize("role", ROLES)
def test_nan_or_inf_in_a_source(role, name, bad, models):
    tensor = tiny.read(models / role)[name]
    tensor.view(-1)[3] = bad
    file = change(models, role, **{name: tensor})
    refused(models, f"{file}: {name} holds NaN or Inf", "--allow-nonfinite")
    result = CliRunner().invoke(main, arguments(models, "--allow-nonfinite"))
    assert result.exit_code == 0, result.output


def test_inf_in_the_result(models):
    refused(models, "the result does not fit BF16", "lower the scale", args=arguments(models, "--scale=1e39"))
    refused(models, "the result does not fit F16", args=arguments(models, "--scale=1e7", "--dtype=float16"))
    refused(models, "a delta times nan has no meaning", "finite number", args=arguments(models, "--scale=nan"))


def test_integers_that_differ(models):
    for number, role in enumerate(ROLES):
        change(models, role, **{"model.layers.0.mlp.table": torch.tensor([number])})
    refused(models, "model.layers.0.mlp.table holds integers that differ from the base's", "--exclude")
    result = CliRunner().invoke(main, arguments(models, "--exclude=table"))
    assert result.exit_code == 0, result.output


def test_an_existing_output(models):
    out = models.parent / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    refused(models, f"{out}: exists already", "--overwrite")
    refused(models, f"{out}: is not replaced", "mine.txt", args=arguments(models, "--overwrite"))
    assert tiny.files_of(out) == {"mine.txt": b"mine"}
    (out / "mine.txt").rename(out / "vocab.txt")
    (out / "weightops.json").write_text("{}")
    result = CliRunner().invoke(main, arguments(models, "--overwrite"))
    assert result.exit_code == 0, result.output
    assert "vocab.txt" not in tiny.files_of(out)
    assert "model.safetensors" in tiny.files_of(out)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("inside", ["", "deep/inside"])
def test_an_output_in_or_equal_to_an_input(role, inside, models):
    refused(
        models,
        "the output would be inside the input",
        str(models / role),
        args=arguments(models, "--overwrite", out=f"models/{role}/{inside}"),
    )


def test_an_output_that_holds_the_inputs(models):
    args = arguments(models, "--overwrite", out="models")
    before = tiny.files_of(models)
    result = CliRunner().invoke(main, args)
    assert result.exit_code == 1
    assert "the output would be inside the input" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert tiny.files_of(models) == before


def test_not_enough_disk_is_found_before_anything_is_written(models, monkeypatch):
    import shutil

    usage = shutil.disk_usage(models)._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    refused(models, f"{models.parent / 'out'}: needs 0.00 GB, but only 0.00 GB are free; free some space")


def in_a_process(
    models: Path, args: list[str], limit: Callable[[], None] | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """The real command, in a process of its own."""
    return subprocess.run(
        [*WEIGHTOPS, *args], capture_output=True, text=True, timeout=120, cwd=models, preexec_fn=limit,
        env=os.environ | environment, check=False,
    )  # fmt: skip


def test_a_disk_that_is_full_after_all_is_one_line_and_leaves_nothing(models):
    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, 5_000))

    before = tiny.files_of(models)
    done = in_a_process(models, arguments(models), small_files)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1
    assert "model.safetensors: not enough space for" in line
    assert "free some space" in line
    assert tiny.files_of(models) == before
    assert os.listdir(models.parent) == ["models"]


def without_the_rights_of_root() -> None:
    """Root reads what nobody may; a process without two of its capabilities does not."""
    if os.geteuid() == 0:
        for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
            if ctypes.CDLL(None).prctl(24, capability, 0, 0, 0):
                raise PermissionError


@pytest.mark.parametrize("what", ["folder", "search", "file", "config.json"])
def test_an_unreadable_folder_or_file(what, models):
    place = (
        models / "guard"
        if what in ("folder", "search")
        else models / "guard" / what.replace("file", "model.safetensors")
    )
    before = tiny.files_of(models)
    place.chmod(0o400 if what == "search" else 0)
    try:
        done = in_a_process(models, arguments(models), without_the_rights_of_root)
    except subprocess.SubprocessError:
        pytest.skip("cannot give up root's rights here")
    finally:
        place.chmod(0o700)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1
    assert line.startswith(f"error: {place}")
    assert "Permission denied" in line
    assert "check its permissions" in line or "check the path and its permissions" in line
    assert tiny.files_of(models) == before
    assert os.listdir(models.parent) == ["models"]


def test_an_output_folder_that_cannot_be_written(models):
    parent = models.parent / "locked"
    parent.mkdir(mode=0o500)
    try:
        done = in_a_process(models, arguments(models, out="locked/out"), without_the_rights_of_root)
    except subprocess.SubprocessError:
        pytest.skip("cannot give up root's rights here")
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1
    assert f"{parent / 'out'}: cannot be written (Permission denied); choose another --out" in line
    assert os.listdir(parent) == []


def test_an_installation_and_a_home_that_cannot_be_written_are_no_fault(models):
    """Compiled kernels are kept where there is a place for them; where there is none they are compiled again."""
    code = (
        "import numba.core.caching as c\n"
        "def nowhere(*_):\n    raise OSError\n"
        "for locator in c.CacheImpl._locator_classes:\n    locator.ensure_cache_path = nowhere\n"
        "import weightops.engine.kernels as k; print(k.affine)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def leave_unfinished(models: Path) -> None:
    """A run that was killed, of the same command."""
    from weightops.algebra.opening import open_all
    from weightops.guard.compose import compose_guard
    from weightops.io.staging import Staging

    plan = compose_guard(*open_all([models / role for role in ROLES])).plan
    with pytest.raises(KeyboardInterrupt), Staging(models.parent / "out", plan.identity()) as staging:
        staging.allocate("model.safetensors", plan.files[0].head, plan.files[0].size)
        raise KeyboardInterrupt


def test_a_resumed_run_whose_inputs_changed(models):
    leave_unfinished(models)
    file = change(models, "guard", **{UP: torch.zeros(32, 16).bfloat16()})
    refused(models, f"its input {file} has changed since", "discard it and start over with --overwrite")
    result = CliRunner().invoke(main, arguments(models, "--overwrite"))
    assert result.exit_code == 0, result.output
    assert not (models.parent / ".out.weightops").exists()


def test_a_resumed_run_of_another_recipe(models):
    leave_unfinished(models)
    refused(models, "its recipe or its sources were different", "--overwrite", args=arguments(models, "--scale=2"))
    result = CliRunner().invoke(main, arguments(models))
    assert result.exit_code == 0, result.output


def test_a_second_process_that_writes_the_same_output(models):
    from weightops.io.staging import Staging

    with Staging(models.parent / "out", {"inputs": {}}):
        refused(models, f"{models.parent / 'out'}: another process is writing it", "choose another --out")


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("nowhere", "nowhere: no such file or folder; write org/name for a hub model"),
        ("./no/where", "./no/where: no such file or folder"),
        ("org/nothing", "org/nothing: not in the local cache, and the hub cannot be reached"),
        ("org/nothing@v1", "org/nothing@v1: not in the local cache"),
        ("x" * 5000, "File name too long"),
        ("", "no such file or folder"),
    ],
)
def test_a_source_that_is_not_there(role, spec, says, models, monkeypatch):
    monkeypatch.chdir(models)
    refused(models, says, args=arguments(models, **{role: spec}))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("notes.txt", b"hello", "notes.txt: not a model file; weightops reads folders, .safetensors, .gguf and .bin"),
        ("x.gguf", b"hello", "x.gguf: not a GGUF file"),
        ("x.bin", b"hello", "x.bin: not a readable PyTorch file"),
        ("x.safetensors", b"hello", "x.safetensors: not a complete safetensors file"),
    ],
)
def test_a_source_that_is_no_model_file(name, content, says, models):
    (models / name).write_bytes(content)
    refused(models, says, args=arguments(models, guard=models / name))


def test_a_folder_without_weights(models):
    (models / "guard/model.safetensors").unlink()
    refused(models, f"{models / 'guard'}: no .safetensors weights")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json", "guard.json"])
def test_a_broken_json_file(name, models):
    if name == "model.safetensors.index.json":
        (models / "guard/model.safetensors").rename(models / "guard/a.safetensors")
    (models / "guard" / name).write_text("{broken")
    refused(models, f"{models / 'guard' / name}: not valid JSON")


def test_options_that_cannot_be_used(models):
    refused(models, "include '(' is not a regular expression", args=arguments(models, "--include=("))
    refused(models, "exclude '*' is not a regular expression", args=arguments(models, "--exclude=*"))
    refused(
        models, "have 21 tensors in common, but include and exclude select none", args=arguments(models, "--exclude=.")
    )
    refused(models, "0 MiB of memory is too little", "give at least", args=arguments(models, "--memory=1kB"))
    refused(models, "tokenizer.json: missing", args=arguments(models, "--labels=safe,unsafe"))


@pytest.mark.parametrize(
    "more", [["--scale=x"], ["--memory=lots"], ["--threads=0"], ["--dtype=int8"], ["--shard-size=0"], ["--nothing"]]
)
def test_a_command_line_that_cannot_be_parsed_is_a_usage_error(more, models):
    result = CliRunner().invoke(main, arguments(models, *more))
    assert result.exit_code == 2
    assert "Usage:" in result.stderr
    assert os.listdir(models.parent) == ["models"]


def test_two_missing_models_are_two_lines(models):
    result = CliRunner().invoke(main, arguments(models, guard="nowhere", base="elsewhere"))
    assert result.exit_code == 1
    assert [line.split(":")[1].strip() for line in result.stderr.splitlines()] == ["nowhere", "elsewhere"]


def test_debug_shows_the_traceback_and_nothing_else_does(models):
    args = arguments(models, guard="nowhere")
    plain, debug = (in_a_process(models, [*flags, *args]) for flags in ([], ["--debug"]))
    assert plain.returncode == debug.returncode == 1
    assert "Traceback" not in plain.stderr
    assert len(plain.stderr.splitlines()) == 1
    assert "Traceback" in debug.stderr


def test_a_fault_of_ours_is_one_line_too(models, monkeypatch):
    import weightops.guard.compose

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("one\ntwo")

    monkeypatch.setattr(weightops.guard.compose, "compose_guard", broken)
    result = CliRunner().invoke(main, arguments(models))
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert "ZeroDivisionError: one two; this is a bug in weightops; run it with --debug" in line


@pytest.mark.parametrize("bad", ["nan", "overflow"])
def test_numbers_that_go_wrong_in_fp64_bring_no_warnings_of_numpy(bad, models):
    for role in ROLES:
        tensors = tiny.cast(tiny.read(models / role), torch.float64)
        if bad == "nan" and role == "guard":
            tensors[UP][0, 0] = float("nan")
        if bad == "overflow":
            tensors[UP][0, 0] = 1.7e308 if role == "guard" else -1.7e308
        tiny.write(models / role, tensors)
    done = in_a_process(models, arguments(models))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "NaN or Inf" in line
    assert UP in line


def test_too_little_memory_is_one_line_that_says_what_to_do(models, monkeypatch):
    import weightops.guard.compose

    def hungry(*_: object, **__: object) -> bytearray:
        return bytearray(1 << 62)

    monkeypatch.setattr(weightops.guard.compose, "compose_guard", hungry)
    result = CliRunner().invoke(main, arguments(models))
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: not enough memory; free some")


def test_a_limit_on_memory_is_one_line_that_says_what_to_do(models):
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (300 << 20, 300 << 20))

    before = tiny.files_of(models)
    done = in_a_process(models, arguments(models), limited)
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: not enough memory; free some")
    assert "Traceback" not in done.stderr
    assert tiny.files_of(models) == before
    assert os.listdir(models.parent) == ["models"]
