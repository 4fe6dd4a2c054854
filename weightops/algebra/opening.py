"""Opens the models that a user names, each as a :class:`~.checkpoint.Checkpoint`. Only headers are read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from ..anatomy.config_keys import ties_embeddings
from ..errors import WeightopsError, attempt_all, short
from ..io import folder as folders
from ..io.adapter import CONFIG as ADAPTER_CONFIG
from ..io.adapter import is_adapter, read_adapter
from ..io.gguf import ALIASES, alias_file, dequantised
from ..io.hub import download, is_hub_id
from ..io.opened import AddOn
from ..io.quantised import joined, without_quantisation
from ..io.small_files import inside
from ..io.sparse_delta import FILE as DELTA_FILE
from ..io.sparse_delta import SparseDelta, delta_file, is_sparse_delta, read_about, read_sparse_delta
from ..io.weights import Weights
from .changes import Change
from .checkpoint import Checkpoint, Delta


def open_checkpoint(spec: str | Path) -> Checkpoint:
    """Open a model: a folder, a hub id ``org/name[@revision]``, a file, an alias, or any of these ``+adapter``.

    Args:
        spec: A Hugging Face folder, sharded or not; a hub id; a ``.safetensors``, ``.bin`` or ``.gguf`` file; an alias
            such as ``smollm2-135m-instruct``; ``BASE+ADAPTER`` with a PEFT LoRA folder or hub id, or with a sparse
            delta; a LoRA adapter or a sparse delta that itself names its base.

    Raises:
        WeightopsError: the model does not exist, it cannot be read, or its weights are quantised, but not in FP8.
    """
    return Opener().open(spec)


def as_checkpoint(model: str | Path | Checkpoint) -> Checkpoint:
    """Open a model given by name; return an open one unchanged."""
    return model if isinstance(model, Checkpoint) else open_checkpoint(model)


class Opener:
    """Opens models by name and reads each header once: a base named alone and with adapters is one source."""

    def __init__(self) -> None:
        self._weights: dict[str, Weights] = {}
        self._added: dict[str, AddOn] = {}

    def open(self, spec: str | Path) -> Checkpoint:
        """Open a model; see :func:`open_checkpoint`."""
        text = str(spec)
        base, plus, adapter = text.partition("+")
        if plus:
            with _reading(text):
                combined = not Path(text).expanduser().exists()
            if combined:
                return self._with(self.open(base), adapter)
        if text in self._weights:
            return Checkpoint(self._weights[text])
        with _reading(text):
            place, revision = _locate(text)
            if is_added(place):
                return self._with(self._base(text, place), text)
            self._weights[text] = _weights_at(text, place, revision)
        return Checkpoint(self._weights[text])

    def _base(self, spec: str, added: Path) -> Checkpoint:
        """The base of what is named alone. It must be a model, so that no chain of adapters is followed."""
        base = base_of_adapter(added, spec)
        if base not in self._weights:
            place, revision = _locate(base)
            if is_added(place):
                raise WeightopsError(f"{spec}: its base {short(base)} is an adapter too; name a model: BASE+{spec}")
            self._weights[base] = _weights_at(base, place, revision)
        return Checkpoint(self._weights[base])

    def _with(self, base: Checkpoint, spec: str) -> Checkpoint:
        """A base with an adapter on it, or with a sparse delta, which is bound to it."""
        if spec not in self._added:
            self._added[spec] = open_added(spec)
        added = self._added[spec]
        if isinstance(added, SparseDelta):
            added = replace(added, base=base.source)
        return base + Delta((Change(added),))


def open_all(specs: Iterable[str | Path]) -> list[Checkpoint]:
    """Open several models; the same spec gives the same source, so that a - a is empty.

    Raises:
        WeightopsError: the problems of all models.
    """
    opener = Opener()
    texts = [str(spec) for spec in specs]
    once = list(dict.fromkeys(texts))
    opened = dict(zip(once, attempt_all(partial(opener.open, text) for text in once), strict=True))
    return [opened[text] for text in texts]


def open_adapter(spec: str | Path) -> Delta:
    """Open a PEFT LoRA folder or hub id, or a sparse delta, as a delta that any model of these shapes can be added to.

    Raises:
        WeightopsError: it does not exist, it is neither a LoRA adapter nor a sparse delta, or it is a sparse delta
            whose values replace those of its base, which is a difference only together with that base.
    """
    added = open_added(spec)
    if isinstance(added, SparseDelta) and added.about.semantics == "replace":
        raise WeightopsError(
            f"{spec}: its values replace those of its base, so it is a difference only together with it; subtract: "
            f'open("BASE+{spec}") - open("BASE")'
        )
    return Delta((Change(added),))


def open_added(spec: str | Path) -> AddOn:
    """Open the part after the plus in ``BASE+ADAPTER``: a LoRA adapter or a sparse delta.

    Raises:
        WeightopsError: it does not exist, it is neither of the two, or it cannot be read.
    """
    text = str(spec)
    with _reading(text):
        place, _ = _locate(text)
        if (place / ADAPTER_CONFIG).exists():
            return read_adapter(place, text)
        if (file := delta_file(place)) is not None:
            return read_sparse_delta(file, text, place if place.is_dir() else None)
    raise WeightopsError(
        f"{text}: no {ADAPTER_CONFIG} and no {DELTA_FILE} there; name a PEFT adapter or a sparse delta"
    )


def _weights_at(spec: str, place: Path, revision: str | None) -> Weights:
    """The source in a folder or a single file."""
    if place.is_file() and place.suffix == ".safetensors":
        return Weights(spec, joined(folders.tensors_of_file(place), {}, spec)[0])
    config = folders.read_json(place / "config.json")
    tensors, quantisation = joined(folders.stored_tensors(place), config, spec)
    return Weights(spec, tensors, place, revision, without_quantisation(config), quantisation=quantisation)


def adapter_base(spec: str) -> tuple[str, str | None]:
    """Split a spec into the names of the model and its adapter, as opening does; ``None`` if there is no adapter.

    Raises:
        WeightopsError: the spec is an adapter whose configuration names no base that can be opened.
    """
    base, plus, adapter = spec.partition("+")
    with _reading(spec):
        folder = Path(spec).expanduser()
        if plus and not folder.exists():
            return base, adapter
        if spec in ALIASES:
            return spec, None
        if spec and not folder.exists() and is_hub_id(spec):
            folder = download(spec)
        alone = is_added(folder)
    return (base_of_adapter(folder, spec), spec) if alone else (spec, None)


def base_of_adapter(folder: Path, spec: str) -> str:
    """The base that a LoRA adapter or a sparse delta names: a hub id, an alias or an existing path.

    If an alias has the named hub id, the alias is used: its weights are on this machine.

    Args:
        folder: The adapter's folder, or the sparse delta's folder or file.
        spec: Its name as the user gave it.

    Raises:
        WeightopsError: it names no base that can be opened.
    """
    file = None if (folder / ADAPTER_CONFIG).exists() else delta_file(folder)
    if file is not None:
        kind, where, revision = "sparse delta", "metadata", None
        name: object = read_about(file).base
    else:
        kind, where, config = "LoRA adapter", ADAPTER_CONFIG, folders.read_json(folder / ADAPTER_CONFIG)
        name, revision = config.get("base_model_name_or_path"), config.get("revision")
    if isinstance(name, str) and name:
        aliases = [alias for alias, known in ALIASES.items() if name in (alias, known.hub)]
        if aliases or ("\0" not in name and Path(name).expanduser().exists()):
            return aliases[0] if aliases else name
        if is_hub_id(name):
            pinned = isinstance(revision, str) and is_hub_id(f"{name}@{revision}")
            return f"{name}@{revision}" if pinned else name
    names = f"names {short(name)} as its base, which does not exist here" if name else "names no base"
    raise WeightopsError(f"{spec}: a {kind}, not a model, and its {where} {names}; write BASE+{spec}")


def not_plain(base: Checkpoint, what: str) -> str | None:
    """Why a checkpoint cannot be the base of ``what`` ("an adapter"): it is a sum; ``None`` if it is a model."""
    if not base.delta.changes:
        return None
    return f"{base.spec}: {what} needs a plain model as its base; save this one first and name its folder"


def is_added(place: Path) -> bool:
    """Whether a path holds an adapter or a sparse delta, and no model."""
    if place.is_dir() and is_adapter(place):
        return True
    file = delta_file(place)
    return file is not None and not (place / "config.json").exists() and is_sparse_delta(file)


@contextmanager
def _reading(spec: str) -> Iterator[None]:
    """Turn an error of the operating system into a problem line."""
    try:
        yield
    except OSError as error:
        where = error.filename or spec
        raise WeightopsError(
            f"{where}: cannot be read ({error.strerror}); check the path and its permissions"
        ) from error


def _locate(spec: str) -> tuple[Path, str | None]:
    """The folder of safetensors (or the single file) that a spec names, and the hub's revision."""
    if spec in ALIASES:
        return dequantised(alias_file(spec), spec), None
    place = Path(spec).expanduser()
    if spec and place.is_dir():
        return _converted_if_pickled(place), None
    if spec and place.exists():
        return _from_file(place), None
    if not is_hub_id(spec):
        raise WeightopsError(
            f"{spec or repr(spec)}: no such file or folder; write org/name for a hub model; the aliases are "
            f"{', '.join(ALIASES)}"
        )
    folder = download(spec)
    return _converted_if_pickled(folder), folder.name


def _from_file(file: Path) -> Path:
    if file.suffix == ".safetensors":
        return file
    if file.suffix == ".gguf":
        return dequantised(file)
    if file.suffix in (".bin", ".pt", ".pth"):
        from ..io.pickled import converted

        return converted(file)
    raise WeightopsError(f"{file}: not a model file; weightops reads folders, .safetensors, .gguf and .bin")


def _converted_if_pickled(folder: Path) -> Path:
    """The folder; if it has only ``.bin`` weights or one GGUF file, their conversion to safetensors in the cache."""
    try:
        names = {path.name for path in folder.iterdir()}
    except OSError as error:
        raise WeightopsError(f"{folder}: cannot be read ({error.strerror}); check its permissions") from error
    if any(name.endswith((".safetensors", ".safetensors.index.json")) for name in names):
        return folder
    if names & {"pytorch_model.bin", "pytorch_model.bin.index.json"}:
        from ..io.pickled import converted

        return converted(folder, untied=ties_embeddings(folders.read_json(folder / "config.json")) is False)
    packed = sorted(name for name in names if name.endswith(".gguf"))
    if len(packed) > 1:
        raise WeightopsError(f"{folder}: {len(packed)} GGUF files; name one of them, for example {folder / packed[0]}")
    return dequantised(inside(folder / packed[0], folder)) if packed else folder
