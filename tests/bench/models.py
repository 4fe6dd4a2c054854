"""Llama-shaped models to measure with: random bf16 weights, written in pieces, kept between runs."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from weightops.errors import WeightopsError
from weightops.io.safetensors import build_header

ROLES = ("guard", "base", "target")
_PIECE = 1 << 21  # elements drawn at a time: memory stays small whatever the model
_WEIGHT, _CHANGE = 0.02, 0.001  # standard deviations of the base's weights and of what guard and target add


@dataclass(frozen=True)
class Shape:
    """A Llama architecture with tied embeddings and grouped-query attention."""

    name: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int = 49_152

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor by its name."""
        hidden, inner, narrow = self.hidden, self.intermediate, self.hidden // self.heads * self.kv_heads
        layer = {
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (narrow, hidden),
            "self_attn.v_proj": (narrow, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
            "input_layernorm": (hidden,),
            "post_attention_layernorm": (hidden,),
        }
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocabulary, hidden)}
        for number in range(self.layers):
            shapes |= {f"model.layers.{number}.{part}.weight": shape for part, shape in layer.items()}
        return shapes | {"model.norm.weight": (hidden,)}

    @property
    def parameters(self) -> int:
        return sum(int(np.prod(shape)) for shape in self.tensors.values())

    @property
    def nbytes(self) -> int:
        """Bytes of one model's weights."""
        return 2 * self.parameters

    @property
    def config(self) -> dict[str, Any]:
        """``config.json``."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": True,
            "dtype": "bfloat16",
        }


#: ``2M`` is for start-up time and for the test of the benchmark itself.
SHAPES = {
    shape.name: shape
    for shape in (
        Shape("2M", 128, 512, 6, 2, 1, vocabulary=4096),
        Shape("0.1B", 576, 1536, 30, 9, 3),
        Shape("0.5B", 1024, 4096, 30, 16, 4),
        Shape("1.5B", 2048, 8192, 23, 32, 8),
    )
}


def workplace() -> Path:
    """Where models lie between runs: ``$WEIGHTOPS_BENCH_DIR``, or a folder among the temporary files."""
    place = Path(os.environ.get("WEIGHTOPS_BENCH_DIR") or Path(tempfile.gettempdir()) / "weightops-bench")
    place.mkdir(parents=True, exist_ok=True)
    return place


def trio(shape: Shape, place: Path) -> dict[str, Path]:
    """Guard, base and target of a shape, generated where they are missing.

    Raises:
        WeightopsError: too little disk for them and for two copies of one, which the benchmarks write.
    """
    folders = {role: place / f"{shape.name}-{role}" for role in ROLES}
    missing = [role for role, folder in folders.items() if not folder.exists()]
    needed, free = (len(missing) + 2) * shape.nbytes, shutil.disk_usage(place).free
    if free < needed:
        raise WeightopsError(
            f"{place}: {shape.name} needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; free some space, "
            "set WEIGHTOPS_BENCH_DIR, or choose smaller --sizes"
        )
    _draws()  # once, before the threads
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda role: _generate(shape, role, folders[role]), missing))
    return folders


def weights_of(folder: Path) -> Path:
    """The one weight file of a generated model."""
    return folder / "model.safetensors"


def _generate(shape: Shape, role: str, folder: Path) -> None:
    """Write a model beside its place and rename it there, so that a file under its name is complete."""
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    (unfinished / "config.json").write_text(json.dumps(shape.config, indent=2), "utf-8")
    head, offsets = build_header({name: ("BF16", size) for name, size in shape.tensors.items()})
    with open(weights_of(unfinished), "wb") as stream:
        stream.write(head)
        for name in sorted(offsets, key=offsets.__getitem__):
            _write_tensor(stream, name, shape.tensors[name], role)
    unfinished.rename(folder)


def _write_tensor(stream: BinaryIO, name: str, shape: tuple[int, ...], role: str) -> None:
    """The base's weights, the same for every role, and for guard and target a small change of their own."""
    base, of_role = (np.random.default_rng([*name.encode(), salt]) for salt in (0, 1 + ROLES.index(role)))
    count = int(np.prod(shape))
    for begin in range(0, count, _PIECE):
        size = min(_PIECE, count - begin)
        values = _normal(base, size) * np.float32(_WEIGHT)
        if role != "base":
            values += _normal(of_role, size) * np.float32(_CHANGE)
        stream.write(_bf16(values).data)


@cache
def _draws() -> np.ndarray:
    return np.random.default_rng(0).standard_normal(3 * _PIECE, np.float32)


def _normal(random: np.random.Generator, size: int) -> np.ndarray:
    """Normal numbers: a window on the same few million draws, at a random place; much faster than fresh ones."""
    begin = random.integers(2 * _PIECE)
    return _draws()[begin : begin + size]


def _bf16(values: np.ndarray) -> np.ndarray:
    """Finite fp32 as the bits of bf16: nearest, ties to even."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
