"""Opening sources: whatever a user names becomes a :class:`~.checkpoint.Checkpoint`. Only headers are read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from ..anatomy.config_keys import ties_embeddings
from ..errors import WeightopsError, attempt_all, short
from ..io import folder as folders
from ..io.adapter import CONFIG as ADAPTER_CONFIG
from ..io.adapter import is_adapter, read_adapter
from ..io.gguf import ALIASES, alias_file, dequantised
from ..io.hub import download, is_hub_id
from ..io.safetensors import StoredTensor
from ..io.small_files import inside
from ..io.weights import Weights
from .changes import Change
from .checkpoint import Checkpoint, Delta

#: Tensors beside packed integers that only make sense with the code that packed them.
_PACKED = re.compile(r"\.(qweight|qzeros|scales|g_idx|absmax|quant_map|SCB|weight_scale(_inv)?|weight_packed)$")


def open_checkpoint(spec: str | Path) -> Checkpoint:
    """Open a model: a folder, a hub id ``org/name[@revision]``, a file, an alias, or any of these ``+adapter``.

    Args:
        spec: A Hugging Face folder, sharded or not; a hub id; a ``.safetensors``, ``.bin`` or ``.gguf`` file; an alias
            such as ``smollm2-135m-instruct``; ``BASE+ADAPTER`` with a PEFT LoRA folder or hub id; a LoRA adapter whose
            own configuration names its base.

    Raises:
        WeightopsError: nothing is there, it cannot be read, or its weights are quantised.
    """
    return Opener().open(spec)


def as_checkpoint(model: str | Path | Checkpoint) -> Checkpoint:
    """A model that is named, opened; one that is open, as it is."""
    return model if isinstance(model, Checkpoint) else open_checkpoint(model)


class Opener:
    """Opens models by name and reads each header once: a base named alone and with adapters is one source."""

    def __init__(self) -> None:
        self._weights: dict[str, Weights] = {}
        self._adapters: dict[str, Delta] = {}

    def open(self, spec: str | Path) -> Checkpoint:
        """Open a model; see :func:`open_checkpoint`."""
        text = str(spec)
        base, plus, adapter = text.partition("+")
        if plus:
            with _reading(text):
                combined = not Path(text).expanduser().exists()
            if combined:
                return self.open(base) + self._adapter(adapter)
        if text in self._weights:
            return Checkpoint(self._weights[text])
        with _reading(text):
            place, revision = _locate(text)
            if place.is_dir() and is_adapter(place):
                return self._base(text, place) + self._adapter(text)
            self._weights[text] = _weights_at(text, place, revision)
        return Checkpoint(self._weights[text])

    def _base(self, spec: str, adapter: Path) -> Checkpoint:
        """What an adapter that is named alone goes on: a model, not another adapter, so that no chain is followed."""
        base = base_of_adapter(adapter, spec)
        if base not in self._weights:
            place, revision = _locate(base)
            if place.is_dir() and is_adapter(place):
                raise WeightopsError(f"{spec}: its base {short(base)} is an adapter too; name a model: BASE+{spec}")
            self._weights[base] = _weights_at(base, place, revision)
        return Checkpoint(self._weights[base])

    def _adapter(self, spec: str) -> Delta:
        if spec not in self._adapters:
            self._adapters[spec] = open_adapter(spec)
        return self._adapters[spec]


def open_all(specs: Iterable[str | Path]) -> list[Checkpoint]:
    """Open several models; the same spec gives the same source, so that a - a is nothing.

    Raises:
        WeightopsError: with the problems of all of them together.
    """
    opener = Opener()
    texts = [str(spec) for spec in specs]
    once = list(dict.fromkeys(texts))
    opened = dict(zip(once, attempt_all(partial(opener.open, text) for text in once), strict=True))
    return [opened[text] for text in texts]


def open_adapter(spec: str | Path) -> Delta:
    """Open a PEFT LoRA folder or hub id as a delta.

    Raises:
        WeightopsError: nothing is there, or it is no LoRA adapter.
    """
    with _reading(str(spec)):
        folder, _ = _locate(str(spec))
        if not (folder / ADAPTER_CONFIG).exists():
            raise WeightopsError(f"{spec}: no {ADAPTER_CONFIG}; after the + stands a PEFT adapter folder")
        return Delta((Change(read_adapter(folder, str(spec))),))


def _weights_at(spec: str, place: Path, revision: str | None) -> Weights:
    """The source that lies in a folder, or in a bare file."""
    if place.is_file() and place.suffix == ".safetensors":
        return _sound(Weights(spec, folders.tensors_of_file(place)))
    config = folders.read_json(place / "config.json")
    return _sound(Weights(spec, folders.stored_tensors(place), place, revision, config))


def adapter_base(spec: str) -> tuple[str, str | None]:
    """A model's name and its adapter's, as they are told apart on opening; no adapter in most of them.

    Raises:
        WeightopsError: it is an adapter alone, and its configuration names no base that can be opened.
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
        alone = folder.is_dir() and is_adapter(folder)
    return (base_of_adapter(folder, spec), spec) if alone else (spec, None)


def base_of_adapter(folder: Path, spec: str) -> str:
    """The base of a LoRA adapter, as its own configuration names it: by a hub id, an alias or a path that exists.

    The hub id of an alias means the alias, whose weights are on this machine.

    Args:
        folder: The adapter's.
        spec: What the user named it.

    Raises:
        WeightopsError: its configuration names no base that can be opened.
    """
    config = folders.read_json(folder / ADAPTER_CONFIG)
    name, revision = config.get("base_model_name_or_path"), config.get("revision")
    if isinstance(name, str) and name:
        aliases = [alias for alias, known in ALIASES.items() if name in (alias, known.hub)]
        if aliases or ("\0" not in name and Path(name).expanduser().exists()):
            return aliases[0] if aliases else name
        if is_hub_id(name):
            pinned = isinstance(revision, str) and is_hub_id(f"{name}@{revision}")
            return f"{name}@{revision}" if pinned else name
    names = f"names {short(name)} as its base, which is not here" if name else "names no base"
    raise WeightopsError(f"{spec}: a LoRA adapter, not a model, and its {ADAPTER_CONFIG} {names}; name it BASE+{spec}")


@contextmanager
def _reading(spec: str) -> Iterator[None]:
    """What the system says no to, as a problem line."""
    try:
        yield
    except OSError as error:
        where = error.filename or spec
        raise WeightopsError(
            f"{where}: cannot be read ({error.strerror}); check the path and its permissions"
        ) from error


def _locate(spec: str) -> tuple[Path, str | None]:
    """The folder of safetensors (or the bare file) that a spec stands for, and the hub's revision."""
    if spec in ALIASES:
        return dequantised(alias_file(spec), spec), None
    place = Path(spec).expanduser()
    if spec and place.is_dir():
        return _converted_if_pickled(place), None
    if spec and place.exists():
        return _from_file(place), None
    if not is_hub_id(spec):
        raise WeightopsError(
            f"{spec or repr(spec)}: no such file or folder; a hub model is written org/name, an alias "
            f"is {', '.join(ALIASES)}"
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
    """A folder that has only ``.bin`` weights, or one GGUF file, as a folder of safetensors in the cache."""
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


def _sound(weights: Weights) -> Weights:
    """Refuse weights that stand for other numbers than they hold."""
    remedy = "dequantise first: load it in transformers, call model.dequantize() and model.save_pretrained(FOLDER)"
    if method := weights.config.get("quantization_config"):
        name = method.get("quant_method", "unknown") if isinstance(method, dict) else "unknown"
        raise WeightopsError(f"{weights.spec}: quantised weights ({name}, says config.json); {remedy}")
    packed = next((tensor for tensor in weights.tensors.values() if _is_packed(tensor)), None)
    if packed is not None:
        raise WeightopsError(f"{packed.file}: {packed.name} belongs to quantised weights; {remedy}")
    return weights


def _is_packed(tensor: StoredTensor) -> bool:
    return _PACKED.search(tensor.name) is not None
