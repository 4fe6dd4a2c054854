"""Jobs for tensors whose rows come from no file as they are: the engine writes what a row source computes."""

from __future__ import annotations

from dataclasses import replace

from ..anatomy.place import Place
from ..engine.jobs import Input, Job, Merge
from ..engine.merging import workspace


def row_job(
    name: str, dtype: str, shape: tuple[int, ...], source: Input, *, place: Place | None = None, scale: float = 1.0
) -> Job:
    """A job that writes the rows of one input, which has a row source.

    Args:
        place: The tensor's layer; outside the layers by default.
        scale: Factor on the rows.
    """
    merge = Merge("passthrough", (source,), None, (("scale", scale),), place or Place(name, None, 0))
    return Job(name, dtype, shape, None, merge=replace(merge, workspace=workspace(shape, merge)))
