"""What the tests of the merging engine share: a merge job on tensors in a file, and what torch makes of the same."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from hypothesis import strategies as st
from merge_cases import normal
from safetensors.torch import save_file

from weightops.dtypes import FROM_TORCH
from weightops.engine import merging
from weightops.engine.execute import measure
from weightops.engine.jobs import Input, Job, Merge
from weightops.io.folder import tensors_of_file
from weightops.ops import Operator, Place, Range, find

Tensor = torch.Tensor
PLACE = Place("model.layers.1.w", layer=1, layers=3)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
SHAPES = [(1,), (17,), (200,), (1, 1), (5, 1), (1, 9), (12, 11), (40, 7), (3, 4, 5), (2, 1, 3)]

#: Values for each parameter, in range; those of one model may differ from another's.
VALUES: dict[str, Sequence[Any]] = {
    "weight": (0.5, 1.0, 1.25, -0.375),
    "density": (0.05, 0.3, 0.5, 0.75, 1.0),
    "gamma": (0.0, 0.01, 0.2, 0.6),
    "epsilon": (1e-5, 0.1),
    "lambda": (1.0, 0.5, 2.0),
    "t": (0.0, 0.3, 1.0),
    "select_topk": (0.0, 0.1, 0.5, 1.0),
    "scale": (1.0, 0.7),
    "tall_lambda": (0.2, 0.4),
    "pcb_ratio": (0.1, 0.5),
    "k": (0, 1, 2),
    "max_iter": (1, 10),
    "alpha": (0.2, 0.5),
    "beta": (0.5,),
    "r": (0.1, 1.0),
}
DELLA = {"density": (0.3, 0.5, 0.7, 1.0), "epsilon": (0.0, 0.1, 0.25)}


@st.composite
def settings_of(draw: st.DrawFn, method: Operator, count: int) -> dict[str, Any]:
    """Settings in range: each parameter left out, one number, or (where models have their own) one for each."""
    given = {}
    for parameter in method.parameters:
        known = {**VALUES, **(DELLA if method.name.startswith("della") else {})}
        values = known.get(parameter.name) or parameter.choices or within(parameter.range)
        if parameter.kind != "bool" and not values:
            continue  # tolerances stay as they are
        one = st.booleans() if parameter.kind == "bool" else st.sampled_from(values)
        kinds = [one] + [st.tuples(*[one] * count)] * parameter.per_model + [st.none()] * (not parameter.required)
        if (value := draw(st.one_of(kinds))) is not None:
            given[parameter.name] = value
    return given


def within(limits: Range | None) -> Sequence[float]:
    """Values from one end of a range to the other, where it has two."""
    if limits is None or not math.isfinite(limits.high - limits.low):
        return ()
    wanted = [limits.low + (limits.high - limits.low) * share for share in (0, 0.1, 0.5, 0.9, 1)]
    return [value for value in wanted if value in limits]


def stack_of(seed: int, count: int, shape: tuple[int, ...], kind: str, dtypes: Sequence[torch.dtype]) -> list[Tensor]:
    """Random tensors; ``ties``: on a coarse grid, so that many magnitudes are equal; ``near``: small changes of one."""
    drawn = normal(seed, count, *shape)
    if kind == "ties":
        drawn = (drawn * 2).round() / 8
    elif kind == "near":
        drawn = normal(seed + 1, *shape) + 0.01 * drawn
    return [tensor.to(dtype) for tensor, dtype in zip(drawn, dtypes, strict=True)]


@contextmanager
def merge_job(
    name: str,
    stack: Sequence[Tensor],
    base: Tensor | None,
    settings: dict[str, Any],
    dtype: torch.dtype = torch.float32,
    **more: Any,
) -> Iterator[Job]:
    """A merge of tensors that lie in a file, as the engine gets it."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        tensors = {f"{i:03}": tensor.contiguous() for i, tensor in enumerate(stack)}
        save_file({k: t.clone() for k, t in (tensors if base is None else {**tensors, "base": base}).items()}, file)
        stored = tensors_of_file(file)
        merge = Merge(
            name,
            tuple(Input(stored[key]) for key in tensors),
            None if base is None else Input(stored["base"]),
            tuple(sorted(settings.items())),
            PLACE,
        )
        merge = replace(merge, **more)
        shape = tuple(stack[0].shape)
        yield Job("w", FROM_TORCH[str(dtype).removeprefix("torch.")], shape, None, merge=merge)


def run(job: Job, memory: int = 1 << 28, allow_nonfinite: bool = False) -> tuple[bytes, dict[str, Any]]:
    """What the engine writes for a job, and the record it leaves."""
    assert job.merge is not None
    path = job.merge.inputs[0].stored.file
    descriptor = os.open(path, os.O_RDONLY)
    pieces: dict[int, bytes] = {}
    try:
        record = merging.run(
            job,
            {path: descriptor},
            lambda begin, data: pieces.__setitem__(begin, bytes(data)),
            memory=memory,
            allow_nonfinite=allow_nonfinite,
            model=measure([job]).get(job.merge.method),
        )
    finally:
        os.close(descriptor)
    return b"".join(pieces[begin] for begin in sorted(pieces)), record


def reference(
    name: str,
    stack: Sequence[Tensor],
    base: Tensor | None,
    settings: dict[str, Any],
    dtype: torch.dtype,
    seed: int = 0,
    scale: float = 1.0,
) -> Tensor:
    """The method's function on the whole tensors in fp32, the base added, rounded once."""
    method = find(name)
    models = torch.stack([tensor.float() for tensor in stack])
    fills = {"base": None if base is None else base.float(), "draw": merging.Draw(seed, PLACE.name), "place": PLACE}
    given = {method.parameter(key).argument: value for key, value in settings.items()}
    given |= {key: fills[key] for key in method.fills if fills[key] is not None}
    if method.takes == "deltas" and base is not None:
        merged = method.function(models - base.float(), **given)
        return (base.float() + (merged if scale == 1.0 else merged * torch.tensor(scale))).to(dtype)
    return method.function(models, **given).to(dtype)


def raw(tensor: Tensor) -> bytes:
    """A tensor's bytes."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
