"""The parts of a transformer, told by tensor names: attention, mlp, norm, embedding, head."""

from __future__ import annotations

import re
from typing import Final

#: First match wins: a norm inside attention is a norm, a router inside an mlp is mlp.
_PATTERNS: Final = (
    ("norm", r"norm|(^|\.)ln(_\w+|\d)?\.|layer_?norm"),
    ("head", r"(^|\.)(lm_head|embed_out|score|classifier)\.|^output\."),
    ("embedding", r"embed|(^|\.)(wte|wpe)\."),
    ("attention", r"attn|attention|(^|\.)([qkvo]_proj|query|key|value|c_attn|qkv)"),
    ("mlp", r"mlp|ffn|feed_forward|expert|moe|(^|\.)(gate|up|down)_proj|fc\d?"),
)

GROUPS: Final = (*(name for name, _ in _PATTERNS), "other")


def group_of(name: str) -> str:
    """The part of the model that a tensor belongs to.

    >>> group_of("model.layers.0.self_attn.q_norm.weight"), group_of("model.layers.0.mlp.up_proj.weight")
    ('norm', 'mlp')
    """
    return next((group for group, pattern in _PATTERNS if re.search(pattern, name, re.IGNORECASE)), "other")
