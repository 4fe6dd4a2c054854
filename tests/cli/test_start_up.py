"""Heavy imports are off the path: the command line answers before they are made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_models as tiny
from merge_cases import count, required

from weightops.engine.merging import way
from weightops.ops import find, methods
from weightops.version import __version__

HEAVY = ["torch", "transformers", "numba", "huggingface_hub", "peft", "tokenizers", "yaml", "numpy"]

CODE = """
import json, sys
from weightops.cli import main
try:
    main(sys.argv[1:], prog_name="weightops")
except SystemExit as end:
    code = end.code
print()
print(json.dumps({"code": code, "modules": sorted(sys.modules)}))
"""


def imported(*args: str, code: int = 0, **environment: str) -> set[str]:
    """The modules that a command has imported when it ends."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, *args], capture_output=True, text=True, timeout=120, check=True,
        env=os.environ | environment,
    )  # fmt: skip
    ended = json.loads(done.stdout.splitlines()[-1])
    assert ended["code"] == code, done.stderr
    return set(ended["modules"])


@pytest.mark.parametrize("args", [["--help"], ["--version"], ["compose-guard", "--help"], ["verify", "--help"]])
def test_help_and_version_import_nothing_heavy(args):
    assert not imported(*args) & set(HEAVY)


def test_completion_imports_nothing_heavy():
    words = {"COMP_WORDS": "weightops compose-guard --guard smol", "COMP_CWORD": "3"}
    assert not imported(_WEIGHTOPS_COMPLETE="bash_complete", **words) & set(HEAVY)


def test_compose_guard_imports_neither_torch_nor_transformers(tmp_path: Path):
    base = tiny.llama(0)
    args = []
    for seed, name in enumerate(("guard", "base", "target")):
        args += [f"--{name}", str(tiny.write(tmp_path / name, tiny.perturbed(base, seed), shards=2))]
    modules = imported("compose-guard", *args, "--out", str(tmp_path / "out"))
    assert (tmp_path / "out/model.safetensors").exists()
    assert not modules & {"torch", "transformers", "huggingface_hub", "peft", "tokenizers"}
    assert "torch" not in imported("verify", str(tmp_path / "out"))
    assert not imported("inspect", str(tmp_path / "out")) & {"torch", "transformers"}


def test_compose_guard_copies_label_rows_without_torch_and_transformers(tmp_path: Path):
    base = tiny.llama(0)
    args = []
    for seed, name in enumerate(("guard", "base", "target")):
        args += [f"--{name}", str(tiny.write(tmp_path / name, tiny.perturbed(base, seed)))]
        tiny.tokenizer(tmp_path / name)
    modules = imported("compose-guard", *args, "--labels", "safe,unsafe", "--out", str(tmp_path / "out"))
    assert not modules & {"torch", "transformers"}


def test_a_merge_imports_torch_only_for_a_method_that_computes_with_it(tmp_path: Path):
    # Fused forms, affine methods and combinations by inner products do not: one file merges with each of them in turn.
    names = [method.name for method in methods() if way(method, {}) in ("fused", "combined") or method.affine]
    assert {"ties", "della", "linear", "slerp", "karcher"} <= set(names)
    base = tiny.llama(0)
    for seed, name in enumerate(("base", "a", "b")):
        tiny.write(tmp_path / name, tiny.perturbed(base, seed), config={"model_type": "llama", "num_hidden_layers": 2})
    steps = [_document(tmp_path, name) | {"name": f"by-{name}"} for name in names]
    last = {
        "merge_method": "linear",
        "models": [{"model": step["name"], "parameters": {"weight": 1}} for step in steps],
    }
    (tmp_path / "all.yml").write_text("\n---\n".join(json.dumps(document) for document in (*steps, last)))
    assert not imported("merge", str(tmp_path / "all.yml"), str(tmp_path / "out")) & {
        "torch",
        "transformers",
        "scipy.linalg",
    }


def _document(folder: Path, name: str) -> dict[str, object]:
    """One document of a merge file, with values for what the method requires."""
    method = find(name)
    models = ["a", "b"][: count(method)]
    base = {"base_model": str(folder / "base")} if method.needs_base else {}
    listed = [{"model": str(folder / model)} for model in models]
    return {"merge_method": name, "models": listed, "parameters": required(method)} | base


def test_a_kernel_of_the_users_own_finds_its_blas_after_ours_have_run():
    code = "import numba, numpy as np, weightops.engine.kernels as k; k.gram(np.ones((1, 4), np.float32)); "
    code += "import sys; assert 'scipy.linalg' not in sys.modules; "
    code += "print(numba.njit(lambda a: a @ a)(np.full((2, 2), 3.0))[0, 0])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "18.0\n", done.stderr


def test_extract_imports_neither_torch_nor_transformers(tmp_path: Path):
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2}
    model = tiny.write(tmp_path / "model", tiny.llama(0), config=config)
    assert not imported("extract", str(model), "--layers", "1", "--out", str(tmp_path / "out")) & {
        "torch",
        "transformers",
    }


def test_inspecting_a_gguf_or_a_bin_imports_neither_torch_nor_transformers(tmp_path: Path):
    import torch
    from tiny_chat import tiny_tokenizer
    from tiny_gguf import write_gguf

    write_gguf(tmp_path / "tiny.gguf", tiny_tokenizer())
    torch.save({"a": torch.zeros(2)}, tmp_path / "a.bin")
    for name in ("tiny.gguf", "a.bin"):
        assert not imported("inspect", str(tmp_path / name)) & {"torch", "transformers"}


def test_scoring_a_text_imports_nothing_that_only_measuring_training_or_serving_need(tmp_path: Path):
    from tiny_chat import write_chat_model

    folder = write_chat_model(tmp_path / "model")
    modules = imported("guard", "score", str(folder), "--preset", "guard-vector", "is this safe")
    assert "transformers" in modules
    assert not modules & {"sklearn", "matplotlib", "pandas", "datasets", "peft", "fastapi", "pydantic", "mergekit"}


def test_the_version_is_the_packages():
    done = subprocess.run([sys.executable, "-c", CODE, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == f"weightops, version {__version__}"


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, weightops; print(*sorted(m for m in sys.modules if '.' not in m))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {*HEAVY, "click"}
