"""Finds the part of a model that a tensor belongs to from its name: attention, mlp, norm, embedding, head, other.

A name is read from the innermost module outwards: ``self_attn.q_norm.weight`` is a norm, and
``attention.output.dense.weight`` belongs to attention. Some words count only if the rest of the name gives no answer:
``output.dense`` in a layer is the second matrix of BERT's feed-forward block, ``output`` outside the layers is a head.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from .layers import kind_of, layer_of

#: The parts, in the order of reports.
GROUPS: Final = ("norm", "head", "embedding", "attention", "mlp", "other")

_Words = tuple[tuple[str, re.Pattern[str]], ...]


def _words(**patterns: str) -> _Words:
    return tuple((group, re.compile(pattern, re.IGNORECASE)) for group, pattern in patterns.items())


_NORM: Final = r"(?<!_prelayer)norm|(?:^|_)(?:ln|rms)(?:_|\d|$)"
_EMBEDDING: Final = r"embed|embd|^(?:wte|wpe)$|^(?:tok|token|word|segment|pos|position|type)_emb$"
_ATTENTION: Final = r"attn|attention"
_MLP: Final = r"mlp|ffn|^ffw?$|feed_?forward|expert|moe|dense_?relu|router"
_HEAD: Final = (
    r"lm_heads?$|^embed_out$|unembed|predictions$|^(?:score|classifier|cls|qa_outputs)$"
    r"|^(?:vocab_projector|lm_loss|pred_layer|output_projection|final_logits_bias)$"
)

#: Patterns that decide by themselves, for one word of a dotted name; the first match counts.
_IN_A_LAYER: Final = _words(norm=_NORM, attention=_ATTENTION, mlp=_MLP)
_OUTSIDE: Final = _words(norm=_NORM, head=_HEAD, embedding=_EMBEDDING, attention=_ATTENTION, mlp=_MLP)

#: Weaker patterns, used if no word of the name matches one of those above.
_HINT_IN_A_LAYER: Final = _words(
    attention=r"^(?:[qkvo]|qk|kv|qkv)_proj|^w?(?:qkv|kv|[qkvo])$|^(?:to_)(?:q|k|v|kv|qkv|out)$|^(?:query|key|value)",
    mlp=r"^(?:gate|up|down|gate_up)(?:_proj)?$|^(?:c_)?fc\d*$|^lin(?:ear)?_?\d$|^w\d$|^(?:intermediate|output)(?:_query)?$",
    embedding=_EMBEDDING,
)
_HINT_OUTSIDE: Final = _words(
    attention=r"^(?:[qkvo]|qkv)_proj|^(?:query|key|value)$|^w[qkvo]$",
    mlp=r"^(?:gate|up|down|gate_up)_proj$|^fc\d*$",
)

#: A module with this name is the head if it directly has a weight, outside the layers of the text model.
_BARE_HEAD: Final = re.compile(r"^(?:head|output|output_layer|proj_out|decoder)$")
_BARE_EMBEDDING: Final = re.compile(r"^(?:shared|w)$")

#: Matrices of a head that do not produce the logits: steps before that, classifiers, other vocabularies.
_NO_LOGITS: Final = re.compile(
    r"^(?:dense|transform|conv|linear\d|score|classifier|qa_outputs|seq_relationship|entity_predictions|lm_heads)$|^altup"
)
_TOKENS: Final = re.compile(
    r"(?:^|\.)(?:embed_tokens|wte|word_embeddings?|tok_embeddings|tokens_embed|token_embd|input_embedding|embed_in|embed"
    r"|embeddings|shared|w)\.(?:weight|embedding)$"
)
#: Tensors before the layers that are not embeddings: norms of embeddings, position tables. Two final norms have similar
#: names and are excluded: LFM's ``embedding_norm`` and ESM's ``emb_layer_norm_after``.
_BEFORE: Final = re.compile(
    r"embed(?!ding_norm)|embd|(?:^|[._])emb_(?!layer_norm_after)|position_ids|rotary|relative_|(?<!hc)_pre\."
)
#: Tables that models compute, but old checkpoints still contain.
_BUFFER: Final = re.compile(r"\.(?:rotary_emb\.inv_freq|(?:attn|attention)\.masked_bias|attn\.bias)$")


@lru_cache(maxsize=1 << 16)  # the same names are looked up many times
def group_of(name: str) -> str:
    """The part of the model that a tensor belongs to, one of :data:`GROUPS`.

    >>> group_of("model.layers.0.self_attn.q_norm.weight"), group_of("bert.encoder.layer.0.output.dense.weight")
    ('norm', 'mlp')
    >>> group_of("transformer.output_layer.weight")
    'head'
    """
    layer = layer_of(name)
    parts = (layer.rest if layer else name).split(".")[::-1]
    strong, weak = (_IN_A_LAYER, _HINT_IN_A_LAYER) if layer else (_OUTSIDE, _HINT_OUTSIDE)
    return _first(parts, strong) or (None if layer else _bare(name, parts)) or _first(parts, weak) or "other"


def _first(parts: Iterable[str], words: _Words) -> str | None:
    """The group of the innermost word that matches a pattern."""
    return next((group for part in parts for group, pattern in words if pattern.search(part)), None)


def _bare(name: str, parts: list[str]) -> str | None:
    """The group of a tensor with a very short name, decided by its module; not used in layers or vision towers."""
    if kind_of(name) != "text" or len(parts) < 2:
        return None
    if _BARE_EMBEDDING.search(parts[1]):
        return "embedding"
    return "head" if _BARE_HEAD.search(parts[1]) or "head" in parts else None


def is_head(name: str) -> bool:
    """Whether a tensor is the output projection onto the vocabulary.

    >>> is_head("lm_head.weight"), is_head("lm_head.dense.weight"), is_head("score.weight")
    (True, False, False)
    """
    if kind_of(name) != "text" or not name.endswith(".weight") or group_of(name) != "head":
        return False
    return not any(_NO_LOGITS.search(part) for part in name.split("."))


def embedding_of(names: Iterable[str]) -> str | None:
    """The token embedding of the text model; in a model with tied embeddings, also the head.

    If encoder and decoder each have one, the shared one is returned, or else the encoder's.
    """
    candidates = [name for name in names if kind_of(name) == "text" and _TOKENS.search(name) and layer_of(name) is None]
    return min(
        candidates,
        key=lambda name: (".shared." not in f".{name}", "decoder" in name, "embed" not in name),
        default=None,
    )


def before_layers(name: str) -> bool:
    """Whether a tensor outside the layers comes before them: embeddings and their norms, towers and projectors.

    All others come after the layers: final norm, pooler, head, classifier.
    """
    if kind_of(name) != "text" or group_of(name) == "embedding":
        return True
    return group_of(name) != "head" and _BEFORE.search(name) is not None


def is_buffer(name: str) -> bool:
    """Whether a tensor is a table that models compute, which old versions of transformers saved."""
    return _BUFFER.search(name) is not None
