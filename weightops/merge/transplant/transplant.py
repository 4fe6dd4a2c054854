"""Another model's tokenizer for a model, as a value: what it reads and writes, its problems, and the writing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from ...algebra.changes import misfits
from ...algebra.checkpoint import Checkpoint, lower, sources
from ...algebra.opening import Opener
from ...anatomy.groups import embedding_of, is_head
from ...anatomy.vocabulary import token_tensors
from ...engine.devices import device_problems
from ...engine.execute import default_threads
from ...engine.jobs import Input, Job
from ...engine.plan import DEFAULT_MEMORY, DEFAULT_SHARD, Plan, make_plan
from ...engine.torch_threads import one_torch_thread
from ...errors import Message, Remedy, WeightopsError, short
from ...io.progress import Progress
from ...io.safetensors import StoredTensor
from ...io.tokenizer import tokenizer_files
from ...io.weights import Weights
from ...output.modelcard import Card, Paper, code
from ...output.save import Package, Prepared, Saved, prepare
from ..row_jobs import row_job
from ..tokens.model_tokens import ModelTokens, read_tokens, tokenizer_only
from ..tokens.tokenizer_files import Numbers, files_of
from ..tokens.union import OutputTokens
from .combinations import BATCH, BLOCK_ROWS
from .token_texts import same_tokens
from .transplant_jobs import METHODS, TAKERS, TokenMatch, TransplantedRows, TransplantMethod, subword_pieces

#: Atoms of a new token's row, mergekit's default.
DEFAULT_ATOMS: Final = 64
_OMP: Final = Paper("Tokenizer transplantation by orthogonal matching pursuit", "2506.06607")


def plan_transplant(
    model: str | Path,
    donor: str | Path,
    *,
    method: TransplantMethod = "omp",
    k: int = DEFAULT_ATOMS,
    pad_to_multiple_of: int = 1,
    device: str = "cpu",
    shard_size: int = DEFAULT_SHARD,
    allow_nonfinite: bool = False,
    trust_remote_code: bool = False,
    command: str | None = None,
) -> Transplant:
    """Plan a model with another model's tokenizer, from headers and tokenizers; no weights are read.

    Args:
        model: What :func:`weightops.open` opens.
        donor: The model whose tokenizer the output gets; for ``subword``, ``mean`` and ``zero`` a folder with a
            tokenizer is enough.
        method: How a row is made for a token that the model does not have: ``omp``, ``common_interpolation``,
            ``subword``, ``mean`` or ``zero``.
        k: Rows of the model that a new row is made of, for ``omp`` and ``common_interpolation``.
        pad_to_multiple_of: Rows of the output are a multiple of this.
        device: Where ``omp`` and ``common_interpolation`` search; the engine writes on the CPU.
        shard_size: Most bytes in a file.
        allow_nonfinite: Write NaN and Inf instead of refusing them.
        trust_remote_code: Run the Python code in a model's folder, if its tokenizer needs it.
        command: The command line, for the model card.

    Raises:
        WeightopsError: a model or tokenizer cannot be read, the vocabularies share too few tokens, or the model has
            tables of tokens other than an embedding and a head.
    """
    _check_settings(method, k, pad_to_multiple_of)
    opener = Opener()
    opened = opener.open(model)
    given = _donor(donor, opener, method)
    names = {"model": opened.source, "donor": given.source if isinstance(given, Checkpoint) else given}
    tokens = read_tokens(names, names, trust_remote_code=trust_remote_code)
    tables = _tables(opened, given, tokens["donor"], method)
    match = _match(tokens["model"], tokens["donor"], method, pad_to_multiple_of)
    atoms = min((len(rows.atoms_in(match)) for rows in tables.values()), default=0)
    if method in TAKERS and k > atoms:
        what = f"{opened.spec} and {donor} have {atoms} tokens in common, fewer than the {k} to make a row of"
        raise WeightopsError(Message(what, Remedy("give a smaller {}", "k"), Remedy("choose another {}", "method")))
    problems, notes = misfits(opened.source, opened.delta.changes)
    problems = [*problems, *device_problems(device)]
    jobs = [_job(opened, name, tables, match.size) for name in opened.names]
    recipe = {
        "kind": "tokenizer transplant", "model": opened.spec, "donor": str(donor), "method": method,
        "k": k if method in TAKERS else None, "rows": match.size,
    }  # fmt: skip
    plan = make_plan(
        jobs,
        recipe,
        problems=problems,
        notes=[*notes, *_notes(match, tokens["model"], tokens["donor"], method)],
        shard_size=shard_size,
        allow_nonfinite=allow_nonfinite,
    )
    return Transplant(opened, given, tokens["model"], tokens["donor"], match, tables, plan, method, k, device, command)


@dataclass(frozen=True, eq=False)
class Transplant:
    """A planned transplant.

    Attributes:
        model_tokens: The model's tokenizer.
        donor_tokens: The output's.
        tables: The embedding, and the head if it is not tied, with their new rows.
    """

    model: Checkpoint
    donor: Checkpoint | Weights
    model_tokens: ModelTokens
    donor_tokens: ModelTokens
    match: TokenMatch
    tables: dict[str, TransplantedRows]
    plan: Plan
    method: TransplantMethod
    k: int
    device: str = "cpu"
    command: str | None = None

    def package(self) -> Package:
        """The files beside the weights: the model's, with the donor's tokenizer and token numbers."""
        output = OutputTokens(self.donor_tokens, self.donor_tokens.ids)
        numbers = Numbers(output, self.model_tokens)
        source = self.model.source
        files = {**files_of(output), **numbers.generation(source)}
        donor = self.donor_tokens.source.spec
        card = Card(
            "A model with another tokenizer",
            f"{code(self.model.spec)} with the tokenizer of {code(donor)}. The model's rows for tokens that it did not "
            f"have were made by the method {code(self.method)}; train the output further.",
            tags=("tokenizer-transplant",),
            papers=(_OMP,) if self.method == "omp" else (),
            command=self.command,
        )
        used = sources(self.donor) if isinstance(self.donor, Checkpoint) else ()
        return Package(
            model=source,
            sources=tuple(dict.fromkeys((*sources(self.model), *used))),
            card=card,
            config=numbers.config(source, self.match.size),
            files=files,
            left_out=tuple(name for name in tokenizer_files(source.folder) if name not in files),
        )

    def prepared(self, out: Path, *, overwrite: bool = False) -> Prepared:
        """The plan with its place, and every problem of both."""
        return prepare(self.plan, self.package(), out, overwrite=overwrite)

    def peak_bytes(self, threads: int, memory: int) -> int:
        """Bytes in memory at most while rows are found, from shapes."""
        donors = [rows.donor.shape[1] for rows in self.tables.values() if rows.donor is not None]
        if self.method not in TAKERS or not donors:
            return 0
        batch = 4 * max(donors) * (BATCH * (self.k + 6) + BLOCK_ROWS) + 8 * BATCH * (2 * BLOCK_ROWS + self.k)
        atoms = 4 * len(self.match.same) * max(donors)
        return threads * batch + (atoms if atoms <= memory else 0)

    def write(
        self, prepared: Prepared, *, threads: int | None = None, memory: int = DEFAULT_MEMORY, progress: bool = True
    ) -> Saved:
        """Find what each new row is made of, then write the output; a killed run resumes, but finds the rows again.

        Args:
            threads: Batches of tokens, and slices of tensors, at the same time.
            memory: Most bytes of buffers, and of the donor's rows that stay in memory.

        Raises:
            WeightopsError: the problems, or a failure on the way.
        """
        if prepared.problems:
            raise WeightopsError(*prepared.problems)
        threads = threads or default_threads()
        work = len(self.match.new) * len(self.tables)
        with one_torch_thread():
            with Progress(work, "making rows", unit="token", shown=progress) as bar:
                for rows in self.tables.values():
                    rows.compute(
                        self.match,
                        self.method,
                        self.k,
                        threads=threads,
                        memory=memory,
                        device=self.device,
                        advance=bar.update,
                    )
            return prepared.write(threads=threads, memory=memory, progress=progress)


def _check_settings(method: str, k: int, pad_to_multiple_of: int) -> None:
    problems = []
    if method not in METHODS:
        problems.append(f"unknown method {method!r}; available: {', '.join(METHODS)}")
    for name, value in (("k", k), ("pad_to_multiple_of", pad_to_multiple_of)):
        if type(value) is not int or not 1 <= value <= 1 << 16:
            problems.append(f"{name} must be a whole number from 1 to {1 << 16}, not {value!r}")
    if problems:
        raise WeightopsError(*problems)


def _donor(donor: str | Path, opener: Opener, method: str) -> Checkpoint | Weights:
    """The donor; a folder without weights only has a tokenizer."""
    folder = Path(donor).expanduser()
    if not folder.is_dir() or any(folder.glob("*.safetensors")) or any(folder.glob("*.bin")):
        return opener.open(donor)
    if method in TAKERS:
        raise WeightopsError(
            Message(
                f"{donor}: has no weights, which {method} makes rows from",
                Remedy("name a model as {}", "donor"),
                Remedy("choose {}", "method", "subword"),
            )
        )
    return tokenizer_only(str(donor))


def _tables(
    model: Checkpoint, donor: Checkpoint | Weights, donor_tokens: ModelTokens, method: str
) -> dict[str, TransplantedRows]:
    """The model's tables by name, each with the donor's of the same use."""
    embedding, problems = embedding_of(model.names), []
    if embedding is None:
        raise WeightopsError(f"{model.spec}: has no token embedding to make rows for")
    tables = {}
    for name in sorted(token_tensors(model.source)):
        stored = model.source.tensors[name]
        if (name != embedding and not is_head(name)) or len(stored.shape) != 2:
            problems.append(
                f"{model.spec}: {short(name)} has an entry for each token, and is neither the embedding nor a plain "
                "head; such a model cannot get another tokenizer"
            )
        elif name in model.delta.names:
            problems.append(f"{model.spec}: its adapter changes {short(name)}; write the model with it first")
        tables[name] = TransplantedRows(stored, _counterpart(donor, is_head(name), method, problems))
    if problems:
        raise WeightopsError(*problems)
    return tables


def _counterpart(donor: Checkpoint | Weights, head: bool, method: str, problems: list[str]) -> StoredTensor | None:
    """The donor's head, or its embedding, also where that is its head."""
    if method not in TAKERS or not isinstance(donor, Checkpoint):
        return None
    heads = [name for name in donor.names if is_head(name)]
    name = heads[0] if head and heads else embedding_of(donor.names)
    if name is None or len(donor.shape(name)) != 2:
        problems.append(f"{donor.spec}: has no token embedding, which {method} makes rows from; name another donor")
        return None
    if name in donor.delta.names:
        problems.append(f"{donor.spec}: its adapter changes {short(name)}; write the model with it first")
    return donor.source.tensors[name]


def _match(model: ModelTokens, donor: ModelTokens, method: str, multiple: int) -> TokenMatch:
    last = max(donor.ids.values(), default=-1)
    size = -(-(last + 1) // multiple) * multiple
    same = same_tokens(donor, model)
    new = np.array(sorted(set(donor.ids.values()) - same.keys()), np.int64)
    bare = np.setdiff1d(np.arange(size), np.array(sorted(donor.ids.values()), np.int64))
    pieces = subword_pieces(model, donor, new) if method == "subword" else {}
    if method in TAKERS:
        lacking = new[new >= (donor.rows or 0)]
    elif method == "subword":
        lacking = np.array([row for row in new.tolist() if row not in pieces], np.int64)
    else:
        lacking = np.zeros(0, np.int64)
    return TokenMatch(size, same, new, pieces, np.union1d(lacking, bare).astype(np.int64))


def _job(model: Checkpoint, name: str, tables: dict[str, TransplantedRows], size: int) -> Job:
    """A copy of the model's tensor, or its table with other rows."""
    if name not in tables:
        return lower(model, name)
    stored = model.source.tensors[name]
    return row_job(name, stored.dtype, (size, stored.shape[1]), Input(stored, rows=tables[name]))


def _notes(match: TokenMatch, model: ModelTokens, donor: ModelTokens, method: str) -> list[str]:
    made = len(match.new) - len(np.intersect1d(match.new, match.without_source))
    notes = [f"{len(match.same)} of the {len(donor.ids)} tokens are the model's own; {made} rows are made by {method}"]
    tokens = {number: token for token, number in donor.ids.items()}
    lacking = [tokens[row] for row in match.without_source.tolist() if row in tokens]
    if lacking:
        notes.append(
            f"{len(lacking)} tokens have nothing to make a row from and get the mean of the model's rows (first: "
            f"{short(lacking[0], 40)!r})"
        )
    if bare := len(match.without_source) - len(lacking):
        notes.append(f"{bare} rows belong to no token and are the mean of the model's rows")
    return notes
