"""Loads the model that a user names with transformers, to run or to train it. An adapter is added while loading."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..engine.execute import default_threads
from ..errors import WeightopsError
from ..io.gguf import ALIASES
from ..io.quiet import quiet_transformers
from ..io.remote_code import refused_code
from .checkpoint import Checkpoint, lower
from .opening import as_checkpoint
from .tensor_jobs import computed

OPENED_AS = "weightops_spec"
"""Attribute of a loaded model: the text by which it was opened. That opens it again where the name needs a hub."""


def load(spec: str | Path | Checkpoint, dtype: str = "auto", *, trust_remote_code: bool = False) -> tuple[Any, Any]:
    """Load a causal language model and its tokenizer.

    An adapter's update is computed as in saving: in fp32, rounded once to the dtype of the file.

    Args:
        spec: A folder, ``org/name``, an alias, or one of these ``+adapter``, as for :func:`weightops.open`; or an
            open checkpoint.
        dtype: Dtype of the weights in memory; ``auto`` keeps the file's.
        trust_remote_code: Run the Python code in the model's folder, if the model needs it.

    Raises:
        WeightopsError: the model does not exist, transformers cannot read it, it needs its own code, or an adapter
            does not fit.
    """
    checkpoint = as_checkpoint(spec)
    checkpoint.plan().check()
    tokenizer = load_tokenizer(checkpoint, trust_remote_code=trust_remote_code)
    return _loaded(checkpoint, dtype, trust_remote_code), tokenizer


def load_model(checkpoint: Checkpoint, dtype: str = "auto", *, trust_remote_code: bool = False) -> Any:
    """The model of :func:`load` without a tokenizer, which its folder then need not have.

    Raises:
        WeightopsError: as for :func:`load`.
    """
    checkpoint.plan().check()
    return _loaded(checkpoint, dtype, trust_remote_code)


def _loaded(checkpoint: Checkpoint, dtype: str, trust_remote_code: bool) -> Any:
    """The model; the plan is already checked."""
    folder, spec = model_folder(checkpoint), checkpoint.spec
    with transformers_reading(checkpoint):
        from transformers import AutoModelForCausalLM

        model: Any = AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=dtype, trust_remote_code=trust_remote_code, **_dequantised(checkpoint)
        )
    _add(model, checkpoint, spec)
    name = known_name(checkpoint)
    model.name_or_path = model.config.name_or_path = (
        name  # an adapter names this as its base, not a folder of the cache
    )
    setattr(model, OPENED_AS, str(spec))
    return model


def _dequantised(checkpoint: Checkpoint) -> dict[str, Any]:
    """What lets transformers read FP8 weights as plain ones on every device; by itself it does so without a GPU."""
    quantisation = checkpoint.source.quantisation
    if quantisation is None or quantisation.get("quant_method") != "fp8":
        return {}
    from transformers import FineGrainedFP8Config

    return {"quantization_config": FineGrainedFP8Config(dequantize=True)}


def load_tokenizer(checkpoint: Checkpoint, *, trust_remote_code: bool = False) -> Any:
    """Load a checkpoint's tokenizer with transformers.

    Raises:
        WeightopsError: the checkpoint has no folder, or transformers cannot read its tokenizer.
    """
    folder = model_folder(checkpoint)
    with transformers_reading(checkpoint):
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust_remote_code)


def model_folder(checkpoint: Checkpoint) -> Path:
    """The folder with a checkpoint's configuration and tokenizer.

    Raises:
        WeightopsError: the checkpoint is a bare file, or layers were cut out of it, which the folder does not show.
    """
    folder = checkpoint.source.folder
    if folder is None:
        raise WeightopsError(
            f"{checkpoint.spec}: a bare file has no configuration and no tokenizer; name the model's folder"
        )
    if checkpoint.source.kept:
        raise WeightopsError(f"{checkpoint.spec}: layers were cut out of it; save it first, and name that folder")
    return folder


@contextmanager
def transformers_reading(checkpoint: Checkpoint) -> Iterator[None]:
    """Silence transformers while it reads a checkpoint's folder, and turn what it raises into a problem line."""
    with quiet_transformers():
        try:
            yield
        except (OSError, ValueError) as error:
            folder = model_folder(checkpoint)
            if code_refused := refused_code(folder, error):
                raise WeightopsError(code_refused) from error
            reason = str(error).strip().partition("\n")[0]
            raise WeightopsError(
                f"{checkpoint.spec}: transformers cannot load it ({reason}); check the folder"
            ) from error


def known_name(checkpoint: Checkpoint) -> str:
    """The name that other programs know: the hub id of a hub model or an alias, else the name it was opened by."""
    spec = checkpoint.spec
    if spec in ALIASES:
        return ALIASES[spec].hub
    return spec.partition("@")[0] if checkpoint.source.revision is not None else spec


def _add(model: Any, checkpoint: Checkpoint, spec: str) -> None:
    """Apply the checkpoint's delta to the loaded model, several tensors at a time. The plan is already checked."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    changed = sorted(checkpoint.delta.names)
    if renamed := sorted(checkpoint.delta.names - parameters.keys()):
        raise WeightopsError(
            f"{spec}: transformers has another name for {renamed[0]}; write the model first, with "
            "weightops.open(...).save(FOLDER), and name that folder"
        )
    jobs = [lower(checkpoint, name) for name in changed]
    with ThreadPoolExecutor(default_threads()) as pool:
        for name, tensor in zip(changed, pool.map(computed, jobs), strict=True):
            parameter = parameters[name]
            # Not copied into place: the loaded weights are pages of the file, and writing to them copies each page.
            parameter.data = tensor.to(parameter)
