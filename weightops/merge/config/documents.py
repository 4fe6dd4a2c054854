"""Several documents in one file: which document uses which, and the order to run them in."""

from __future__ import annotations

from collections.abc import Sequence

from ...io.faults import Faults
from .schema import MergeConfig, reference


def dependencies(config: MergeConfig, names: frozenset[str]) -> tuple[str, ...]:
    """The documents, by name, whose results a document uses as models or for its tokenizer."""
    used = list(config.referenced_models())
    if config.tokenizer is not None:
        used.append(config.tokenizer.source)
        used += [source.model for source in config.tokenizer.tokens.values() if source.model]
    return tuple(dict.fromkeys(base for base in (reference(model).model for model in used) if base in names))


def in_order(configs: Sequence[MergeConfig]) -> tuple[MergeConfig, ...]:
    """Sort the documents so that each follows those it uses; otherwise in file order, the unnamed one last.

    Raises:
        WeightopsError: two documents with one name, two without a name, or documents that use each other.
    """
    faults = Faults(configs[0].where if configs else "config")
    check_documents(configs, faults)
    faults.raise_any()
    names = names_of(configs)
    waiting = sorted(configs, key=lambda config: config.name is None)
    done: dict[str | None, MergeConfig] = {}
    while waiting:
        ready = next(one for one in waiting if all(used in done for used in dependencies(one, names)))
        waiting.remove(ready)
        done[ready.name] = ready
    return tuple(done.values())


def final(configs: Sequence[MergeConfig]) -> MergeConfig:
    """The document whose result is the output: the one without a name, else the last to run."""
    return in_order(configs)[-1]


def names_of(configs: Sequence[MergeConfig]) -> frozenset[str]:
    """The names of the documents that have one."""
    return frozenset(config.name for config in configs if config.name)


def check_documents(configs: Sequence[MergeConfig], faults: Faults) -> None:
    """Add problems between the documents of a file: repeated names, several without a name, circles."""
    first: dict[str | None, MergeConfig] = {}
    for config in configs:
        if config.name in first:
            line = first[config.name].line
            problem = f"name {config.name!r} is used twice" if config.name else "only one document may have no name"
            faults.add(config.line_of("name"), f"{problem} (first on line {line})")
        first.setdefault(config.name, config)
    uses = {name: dependencies(config, names_of(configs)) for name, config in first.items() if name}
    for circle in _circles(uses):
        faults.add(first[circle[0]].line_of("name"), f"documents use each other in a circle: {' -> '.join(circle)}")


def _circles(uses: dict[str, tuple[str, ...]]) -> list[tuple[str, ...]]:
    """For each set of documents that use each other, a path from the first of them back to itself."""
    circles: list[tuple[str, ...]] = []
    seen: set[str] = set()
    for start in uses:
        path = _way_back(start, uses) if start not in seen else None
        if path:
            circles.append(path)
            seen.update(path)
    return circles


def _way_back(start: str, uses: dict[str, tuple[str, ...]]) -> tuple[str, ...] | None:
    paths: list[tuple[str, ...]] = [(start,)]
    visited: set[str] = set()
    while paths:
        path = paths.pop(0)
        for used in uses[path[-1]]:
            if used == start:
                return (*path, used)
            if used not in visited:
                visited.add(used)
                paths.append((*path, used))
    return None
