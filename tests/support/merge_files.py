"""What the tests of whole merges share: models on disk, our merge of a file, and mergekit's of the same file."""

from __future__ import annotations

import contextlib
import io
import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tiny_models as tiny
import torch

from weightops.engine.plan import DEFAULT_MEMORY
from weightops.merge import run
from weightops.merge.build import Options
from weightops.output.save import Saved

Tensor = torch.Tensor


def family(
    folder: Path, names: Iterable[str], *, size: float = 0.1, tied: bool = False, **more: Any
) -> dict[str, Path]:
    """A tiny Llama that transformers loads, with a tokenizer, and further models, each a little trained from it."""
    first, *others = names
    made = {first: llama(folder / first, tied=tied, **more)}
    base = tiny.read(made[first])
    for seed, name in enumerate(others, 1):
        made[name] = tiny.copy(made[first], folder / name)
        tiny.rewrite(made[name], tiny.perturbed(base, seed, size))
    return made


def llama(folder: Path, *, layers: int = 4, vocab: int = 24, tied: bool = False, seed: int = 0) -> Path:
    """A random Llama of some layers as transformers saves it, fp32, with a tokenizer."""
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": vocab, "hidden_size": 16,
        "intermediate_size": 32, "num_hidden_layers": layers, "num_attention_heads": 4, "num_key_value_heads": 4,
        "head_dim": 4, "max_position_embeddings": 64, "tie_word_embeddings": tied, "bos_token_id": 1,
        "eos_token_id": 2, "dtype": "float32", "rms_norm_eps": 1e-6,
    }  # fmt: skip
    tensors = tiny.llama(seed, vocab=vocab, hidden=16, layers=layers, tied=tied, dtype=torch.float32)
    tiny.write(folder, tensors, config=config)
    tiny.tokenizer(folder)
    return folder


def ours(text: str, out: Path, **options: Any) -> dict[str, Tensor]:
    """Run a merge file by weightops and read what it wrote."""
    merge(text, out, **options)
    return tiny.read(out)


def merge(text: str, out: Path, *, threads: int = 2, memory: int = DEFAULT_MEMORY, **options: Any) -> Saved:
    """Run a merge file by weightops."""
    file = out.parent / f"{out.name}.yml"
    file.write_text(text)
    return run.merge(run.read(file), out, Options(**options), threads=threads, memory=memory, progress=False)


def theirs(text: str, out: Path, **options: Any) -> dict[str, Tensor]:
    """Run it by mergekit, in this process, on the CPU."""
    import yaml
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    chosen = MergeOptions(quiet=True, write_model_card=False, random_seed=0, **options)
    with quiet():
        run_merge(MergeConfiguration.model_validate(yaml.safe_load(text)), str(out), chosen)
    return tiny.read(out)


@contextlib.contextmanager
def quiet() -> Any:
    """mergekit's and transformers' bars and warnings swallowed."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def config_of(folder: Path) -> dict[str, Any]:
    """A folder's ``config.json``."""
    return json.loads((folder / "config.json").read_text())


def assert_close(actual: dict[str, Tensor], expected: dict[str, Tensor], *, steps: float = 4) -> None:
    """Every tensor of two models, equal up to some roundings of the dtype, of the tensor's largest entry."""
    assert set(actual) == set(expected)
    for name, value in expected.items():
        mine = actual[name]
        assert (mine.dtype, mine.shape) == (value.dtype, value.shape), name
        room = steps * torch.finfo(mine.dtype).eps * float(value.double().abs().max())
        gap = float((mine.double() - value.double()).abs().max())
        assert gap <= room, f"{name}: {gap:.3g} apart, {room:.3g} allowed"


def widened(tensors: dict[str, Tensor], to: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """The same numbers in a wider dtype."""
    return {name: tensor.to(to) for name, tensor in tensors.items()}
