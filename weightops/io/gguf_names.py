"""Hugging Face's names for the tensors of a GGUF file, for architectures whose names follow Llama's.

Source of the names: the ``gguf`` package's tensor map, and transformers' module trees; a test holds the tables against
both.
"""

from __future__ import annotations

import re
from typing import Final

_OUTSIDE: Final = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_ATTENTION: Final = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
}  # fmt: skip
_MLP: Final = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
_LLAMA: Final = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", **_ATTENTION, **_MLP}
_GEMMA: Final = {
    "attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm", "post_ffw_norm": "post_feedforward_layernorm", **_ATTENTION, **_MLP,
}  # fmt: skip

#: Names inside a layer, by the file's ``general.architecture``.
LAYERS: Final = {"llama": _LLAMA, "qwen2": _LLAMA, "qwen3": _LLAMA, "gemma2": _GEMMA, "gemma3": _GEMMA}

_NAME: Final = re.compile(r"(?:blk\.(?P<layer>[0-9]{1,9})\.)?(?P<module>[a-z_]+)\.(?P<end>weight|bias)")


def hub_tensor_name(name: str, architecture: object) -> str | None:
    """The name that the tensor has in a Hugging Face folder; ``None`` where that is not known.

    >>> hub_tensor_name("blk.3.ffn_up.weight", "llama"), hub_tensor_name("token_embd.weight", "other")
    ('model.layers.3.mlp.up_proj.weight', None)
    """
    layers = LAYERS.get(architecture) if isinstance(architecture, str) else None
    match = _NAME.fullmatch(name)
    if layers is None or match is None:
        return None
    if match["layer"] is None:
        module = _OUTSIDE.get(match["module"])
    elif module := layers.get(match["module"]):
        module = f"model.layers.{int(match['layer'])}.{module}"
    return module and f"{module}.{match['end']}"
