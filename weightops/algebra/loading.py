"""Loads the model that a user names with transformers, to run or to train it. An adapter is added while loading."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ..engine.execute import default_threads
from ..errors import WeightopsError
from ..io.gguf import ALIASES
from ..io.quiet import quiet_transformers
from ..io.remote_code import refused_code
from .checkpoint import Checkpoint, computed, lower
from .opening import as_checkpoint

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
    spec = checkpoint.spec
    folder = checkpoint.source.folder
    if folder is None:
        raise WeightopsError(f"{spec}: a bare file has no configuration and no tokenizer; name the model's folder")
    checkpoint.plan().check()
    with quiet_transformers():
        from transformers import AutoModelForCausalLM, AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
            model: Any = AutoModelForCausalLM.from_pretrained(
                str(folder), dtype=dtype, trust_remote_code=trust_remote_code
            )
        except (OSError, ValueError) as error:
            if code_refused := refused_code(folder, error):
                raise WeightopsError(code_refused) from error
            reason = str(error).strip().partition("\n")[0]
            raise WeightopsError(f"{spec}: transformers cannot load it ({reason}); check the folder") from error
    _add(model, checkpoint, spec)
    name = known_name(checkpoint)
    model.name_or_path = model.config.name_or_path = (
        name  # an adapter names this as its base, not a folder of the cache
    )
    setattr(model, OPENED_AS, str(spec))
    return model, tokenizer


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
