"""Measurements taken during execution: content digests and sums of squares."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from ..errors import WeightopsError
from ..io.safetensors import StoredTensor
from .exact_reads import blocks_of
from .jobs import BLOCK, Job, JobSlice, Scattered

if TYPE_CHECKING:
    from .plan import Plan

#: The measurements of one block: digests of the operands it owns, digest of the written bytes, squared norms.
Record = dict[str, Any]


@dataclass
class Tally:
    """All measurements, summed in the order of the plan.

    Attributes:
        inputs: Content digest of every stored tensor that was read completely.
        outputs: Content digest of every tensor written.
        squares: For each measuring job, the squared norms of its change and of its base.
    """

    inputs: dict[StoredTensor, str] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    squares: dict[Job, tuple[float, float]] = field(default_factory=dict)


def block_digest(data: Any) -> str:
    """Digest of one block's bytes: BLAKE3. A tensor's digest is the digest of its blocks' digests, concatenated."""
    return blake3(data).hexdigest()


def combined_digest(digests: Iterable[str]) -> str:
    """A tensor's digest from its blocks', in order."""
    total = blake3()
    for digest in digests:
        total.update(bytes.fromhex(digest))
    return total.hexdigest()


def tensor_digest(tensor: StoredTensor) -> str:
    """The content digest of one stored tensor, equal to the one computed while writing."""
    return combined_digest(map(block_digest, blocks_of(tensor, BLOCK)))


def check_bases(jobs: Iterable[Job], digests: Mapping[StoredTensor, str]) -> None:
    """Refuse a sparse delta on a base that it was not made from, where the base was read.

    Args:
        digests: Content digest of stored tensors.

    Raises:
        WeightopsError: a tensor of the base has another content; the first is named.
    """
    read = {
        operand.of: operand
        for job in jobs
        for operand in job.operands
        if isinstance(operand, Scattered) and operand.of is not None and operand.base_digest is not None
    }
    wrong = {of: entries for of, entries in read.items() if digests.get(of, entries.base_digest) != entries.base_digest}
    for stored, entries in wrong.items():
        more = f", and {len(wrong) - 1} more such tensors" if len(wrong) > 1 else ""
        raise WeightopsError(
            f"{entries.indices.file}: {stored.name}: was made for another base: its content in {stored.file} differs"
            f"{more}; name the base that the delta was made for"
        )


def owned_operands(plan: Plan) -> list[list[StoredTensor]]:
    """For each job, the stored tensors that it hashes: those that no earlier job reads completely."""
    seen: set[StoredTensor] = set()
    owned: list[list[StoredTensor]] = []
    for job in plan.jobs:
        candidates = () if job.merge is not None else job.operands
        complete = [o for o in candidates if isinstance(o, StoredTensor) and o.count <= job.count and o not in seen]
        seen.update(complete)
        owned.append(complete)
    return owned


class Gather:
    """Adds up the blocks' records, in the order of the plan, into a tally."""

    def __init__(self, owned: list[list[StoredTensor]]) -> None:
        self.tally = Tally()
        self._owned = owned
        self._reading: dict[StoredTensor, Any] = {}
        self._writing: Any = blake3()

    def begin(self, plan: Plan) -> None:
        """Close the empty tensors: they have no blocks, and their digest is that of no bytes."""
        for number, job in enumerate(plan.jobs):
            if job.count == 0:
                self._close(number, job)

    def add(self, piece: JobSlice, records: list[Record]) -> None:
        """Add the records of a slice."""
        if piece.job.whole:
            self._add_whole(piece.number, piece.job, records[0])
            return
        for record in records:
            for tensor, digest in zip(self._owned[piece.number], record["in"], strict=True):
                self._reading.setdefault(tensor, blake3()).update(bytes.fromhex(digest))
            if piece.job.written:
                self._writing.update(bytes.fromhex(record["out"]))
            if "squares" in record:
                change, base = self.tally.squares.get(piece.job, (0.0, 0.0))
                self.tally.squares[piece.job] = (change + record["squares"][0], base + record["squares"][1])
        if piece.end == piece.job.count:
            self._close(piece.number, piece.job)

    def _add_whole(self, number: int, job: Job, record: Record) -> None:
        """A tensor that one thread computed, which has one record."""
        read = self._owned[number] if job.merge is None else [source.stored for source in job.merge.all_inputs]
        for tensor, digest in zip(read, record["in"], strict=True):
            if digest is not None:
                self.tally.inputs.setdefault(tensor, digest)
        self.tally.outputs[job.name] = record["out"]
        if job.scales is not None:
            self.tally.outputs[job.scales.name] = record["scales"]
        if "squares" in record:
            self.tally.squares[job] = (record["squares"][0], record["squares"][1])

    def _close(self, number: int, job: Job) -> None:
        for tensor in self._owned[number]:
            self.tally.inputs[tensor] = self._reading.pop(tensor, blake3()).hexdigest()
        if job.written:
            self.tally.outputs[job.name] = self._writing.hexdigest()
            self._writing = blake3()
