"""The models that a soup is made of: opened, checked against each other, and known by their content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from blake3 import blake3

from ..algebra.checkpoint import Checkpoint, sources
from ..algebra.opening import open_all
from ..engine.execute import default_threads
from ..engine.plan import canonical
from ..engine.tally import tensor_digest
from ..errors import Message, Remedy, WeightopsError
from ..io.folder import read_json
from ..io.opened import Source
from ..io.progress import Progress
from ..io.safetensors import StoredTensor
from ..io.tokenizer import SETTINGS, TEMPLATE, TOKENIZER, tokenizer_files
from ..merge.build import Built, Options, build
from ..merge.config.reading import parse
from ..output.provenance import content, stored_in
from ..output.save import carried_files
from .candidate import Candidate


@dataclass(frozen=True, eq=False)
class Ingredients:
    """Opened models.

    Attributes:
        names: What is merged, as the user named it.
        base: What they were tuned from, where that takes part.
        opened: All of them by name, the base too.
        options: Of every merge.
    """

    names: tuple[str, ...]
    base: str | None
    opened: Mapping[str, Checkpoint]
    options: Options

    @property
    def carrier_name(self) -> str:
        """The model that is loaded to judge, with its configuration and tokenizer: the base, or else the first."""
        return self.base or self.names[0]

    @property
    def carrier(self) -> Checkpoint:
        """The model of :attr:`carrier_name`."""
        return self.opened[self.carrier_name]

    @property
    def carried(self) -> tuple[Checkpoint, ...]:
        """All models, the carrier first."""
        return tuple(self.opened[name] for name in dict.fromkeys([self.carrier_name, *self.opened]))

    @cached_property
    def short(self) -> Mapping[str, str]:
        """A short name for each model, for tables: the end of its path, where no other has the same."""
        ends = {name: Path(name.rpartition("+")[2]).name or name for name in self.opened}
        return {name: end if list(ends.values()).count(end) == 1 else name for name, end in ends.items()}

    def built(self, candidate: Candidate) -> Built:
        """The plan of a candidate, as ``weightops merge`` makes it.

        Raises:
            WeightopsError: the merge file or the models do not allow it.
        """
        (config,) = parse(candidate.text, candidate.label)
        used = {name: self.opened[name] for name in config.referenced_models()}
        return build(config, used, replace(self.options, text=candidate.text))

    @cached_property
    def contents(self) -> Mapping[str, str]:
        """A digest of everything of each model that a score depends on: weights, configuration, tokenizer."""
        known = self._digests()
        digests = {name: [known[source] for source in sources(model)] for name, model in self.opened.items()}
        return {
            name: blake3("".join([*each, *map(_small_files, self.opened[name].folders)]).encode()).hexdigest()
            for name, each in digests.items()
        }

    def unlike(self) -> list[str]:
        """Notes: models whose tokenizer or chat template is not the carrier's, and models that are equal."""
        notes = [
            f"{name}: its tokenizer or chat template differs from that of {self.carrier.spec}, with which all "
            "candidates are judged"
            for name in self.other_tokenizers()
        ]
        same: dict[str, str] = {}
        for name in self.names:
            first = same.setdefault(self.contents[name], name)
            if first != name:
                notes.append(f"{name}: the same model as {first}")
        return notes

    def other_tokenizers(self) -> list[str]:
        """The models whose tokenizer or chat template is not the carrier's; one without any does not count."""
        same = (_tokenizer(self.carrier), (None, None))
        return [name for name in self.names if _tokenizer(self.opened[name]) not in same]

    def _digests(self) -> dict[Source, str]:
        """The content digest of each source, computed by several threads."""
        all_sources = list(dict.fromkeys(one for model in self.opened.values() for one in sources(model)))
        tensors = list(dict.fromkeys(tensor for one in all_sources for tensor in stored_in(one)))
        with (
            Progress(sum(t.nbytes for t in tensors), "reading the models") as bar,
            ThreadPoolExecutor(default_threads()) as pool,
        ):
            digests: dict[StoredTensor, str] = {}
            for tensor, digest in zip(tensors, pool.map(tensor_digest, tensors), strict=True):
                digests[tensor] = digest
                bar.update(tensor.nbytes)
        return {one: content({tensor: digests[tensor] for tensor in stored_in(one)}) for one in all_sources}


def open_ingredients(names: Sequence[str | Path], base: str | Path | None, options: Options) -> Ingredients:
    """Open the models of a soup; only headers are read.

    Raises:
        WeightopsError: models that cannot be opened, or one that is named twice.
    """
    texts = tuple(map(str, names))
    twice = sorted({name for name in texts if texts.count(name) > 1})
    if twice:
        raise WeightopsError(*(f"{name}: is listed twice; name each model once" for name in twice))
    if not texts:
        raise WeightopsError(Message("no models to choose from", Remedy("name them as {}", "models")))
    every = tuple(dict.fromkeys([*([] if base is None else [str(base)]), *texts]))
    opened = dict(zip(every, open_all(every), strict=True))
    return Ingredients(texts, None if base is None else str(base), opened, options)


def _small_files(folder: Path) -> str:
    files = {name: blake3(data).hexdigest() for name, data in carried_files(folder).items() if name != "README.md"}
    return canonical(files)


def _tokenizer(model: Checkpoint) -> tuple[bytes | None, Any]:
    """The tokenizer's file and the default chat template of a model."""
    folder = model.source.folder
    if folder is None:
        return None, None
    files = tokenizer_files(folder)
    template = read_json(folder / SETTINGS).get("chat_template")
    return files.get(TOKENIZER), files[TEMPLATE].decode("utf-8", "replace") if TEMPLATE in files else template
