"""What a card says about using what it describes: code that runs in the output's own folder, and its licence."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import WeightopsError
from ..io.companions import GUARD_CARD
from ..io.small_files import inside, read_small

#: Bytes of a model card; the longest on the hub have some hundred kB.
MOST_CARD = 2_000_000
_FRONT = re.compile(r"\A---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_LICENCE = re.compile(r"^license:[ \t]*[\"']?([A-Za-z0-9][A-Za-z0-9.+-]{0,63})[\"']?[ \t]*\r?$", re.MULTILINE)


def licence_of(folder: Path | None) -> str | None:
    """The licence that a model folder's card states, by the hub's short name; ``None`` where it states none.

    >>> licence_of(None) is None
    True
    """
    if folder is None:
        return None
    try:
        text = read_small(inside(folder / "README.md", folder), MOST_CARD).decode("utf-8", "replace")
    except (OSError, WeightopsError):  # a card that cannot be read states nothing
        return None
    front = _FRONT.match(text)
    licence = _LICENCE.search(front[1]) if front else None
    return licence[1].lower() if licence else None


def shared_licence(licences: Iterable[str | None]) -> str | None:
    """The licence that all sources state; ``None`` where one states another, or none.

    >>> shared_licence(["mit", "mit"]), shared_licence(["mit", None]), shared_licence([])
    ('mit', None, None)
    """
    stated = set(licences)
    return stated.pop() if len(stated) == 1 else None


def usage(files: Iterable[str], config: Mapping[str, Any]) -> str:
    """Markdown with code that uses the model; run it in the model's folder, or put the model's hub id for the dot.

    Args:
        files: Names of the files that lie beside the weights.
        config: ``config.json``.
    """
    names = set(files)
    if GUARD_CARD in names:
        return GUARD_USAGE
    if "config.json" not in names:
        return ""
    causal = any(str(name).endswith("ForCausalLM") for name in config.get("architectures") or ())
    if not causal or "tokenizer.json" not in names:
        kind = "AutoModelForCausalLM" if causal else "AutoModel"
        return f'```python\nfrom transformers import {kind}\n\nmodel = {kind}.from_pretrained(".")\n```'
    return MODEL_USAGE


MODEL_USAGE = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
model = AutoModelForCausalLM.from_pretrained(".")
inputs = tokenizer("The sky is", return_tensors="pt", return_token_type_ids=False)
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=20)[0]))
```"""

GUARD_USAGE = """```
weightops guard score . "How do I bake bread?"
```

```python
from weightops.guard import Guard

print(Guard.load(".").probabilities(["How do I bake bread?"]))  # that each text is unsafe
```"""
