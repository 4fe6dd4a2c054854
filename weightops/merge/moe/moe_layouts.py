"""The mixture-of-experts architectures that dense models can become, and where each keeps its experts.

Tensors get the names under which the hub's own checkpoints of each architecture hold them, so that every program that
reads those reads the output. (mergekit 0.1.5 writes Mixtral and Qwen3 MoE under transformers 5's internal names.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from ...errors import WeightopsError
from ...ops.registry import nearest
from .moe_file import MoeFile

_LLAMA: Final = ("llama", "mistral")
_QKV_BIASES: Final = ("self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias")
_ATTENTION_BIASES: Final = (*_QKV_BIASES, "self_attn.o_proj.bias")
_CODE: Final = "deepseek-ai/deepseek-moe-16b-base--"


@dataclass(frozen=True)
class MoeLayout:
    """An output architecture.

    Attributes:
        name: As ``architecture:`` in the file begins.
        model_type: In the output's config.
        architecture: Class of the output.
        inputs: The ``model_type`` values of models it can be made of.
        shared: Whether it has an expert for all tokens: never, or one; ``gated`` is one that needs a gate of its own.
        expert: Name of an expert's matrix below its layer.
        gate: Name of the router below its layer.
        shared_expert: The same of the shared expert's matrix.
        shared_gate: And of its gate.
        parts: Names of the three matrices, if they differ.
        biases: Biases that its layers can hold.
        needed_biases: Those that they must have, zeros where the base has none.
        settings: Keys of its config that are always the same.
        sizes: Keys of its config for the width of an expert.
        experts_key: The key for their number.
    """

    name: str
    model_type: str
    architecture: str
    inputs: tuple[str, ...]
    experts_key: str
    shared: Literal["none", "one", "gated"] = "none"
    expert: str = "mlp.experts.{expert}.{part}.weight"
    gate: str = "mlp.gate.weight"
    shared_expert: str = ""
    shared_gate: str = ""
    parts: Mapping[str, str] = field(default_factory=dict)
    biases: tuple[str, ...] = ()
    needed_biases: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    sizes: tuple[str, ...] = ("intermediate_size",)

    def misfit(self, file: MoeFile, types: Sequence[str]) -> str | None:
        """Why this architecture cannot be made of these models; ``None`` if it can.

        Args:
            types: The ``model_type`` of each model of the file.
        """
        kinds = sorted(set(types))
        if len(kinds) > 1 or kinds[0] not in self.inputs:
            return f"is made of models of one type ({' or '.join(self.inputs)}), not {', '.join(kinds)}"
        if self.shared == "none":
            return "has no shared experts" if file.shared else None
        if len(file.shared) > 1:
            return "has one shared expert"
        prompts = any(expert.positive or expert.negative for expert in file.shared)
        if self.shared == "one":
            return "has no gate for its shared expert, so that can have no prompts" if prompts else None
        if not file.shared:
            return "needs a shared expert"
        return None if prompts or file.drawn else "needs prompts for its shared expert"

    def part_of(self, part: str) -> str:
        """The name of an expert's matrix here."""
        return self.parts.get(part, part)


#: In the order of preference, which is mergekit's.
LAYOUTS: Final = (
    MoeLayout(
        "Mixtral", "mixtral", "MixtralForCausalLM", _LLAMA, "num_local_experts",
        expert="block_sparse_moe.experts.{expert}.{part}.weight",
        gate="block_sparse_moe.gate.weight",
        parts={"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"},
        settings={"sliding_window": None},
    ),
    MoeLayout(
        "DeepSeek MoE", "deepseek", "DeepseekForCausalLM", _LLAMA, "n_routed_experts",
        shared="one",
        shared_expert="mlp.shared_experts.{part}.weight",
        biases=_ATTENTION_BIASES,
        settings={
            "first_k_dense_replace": 0, "moe_layer_freq": 1, "scoring_func": "softmax", "norm_topk_prob": True,
            "auto_map": {
                "AutoConfig": f"{_CODE}configuration_deepseek.DeepseekConfig",
                "AutoModel": f"{_CODE}modeling_deepseek.DeepseekModel",
                "AutoModelForCausalLM": f"{_CODE}modeling_deepseek.DeepseekForCausalLM",
            },
        },
        sizes=("intermediate_size", "moe_intermediate_size"),
    ),
    MoeLayout(
        "Qwen MoE", "qwen2_moe", "Qwen2MoeForCausalLM", (*_LLAMA, "qwen2"), "num_experts",
        shared="gated",
        shared_expert="mlp.shared_expert.{part}.weight",
        shared_gate="mlp.shared_expert_gate.weight",
        biases=_QKV_BIASES,
        needed_biases=_QKV_BIASES,
        settings={
            "decoder_sparse_step": 1, "norm_topk_prob": True, "sliding_window": None, "use_sliding_window": False,
        },
        sizes=("intermediate_size", "moe_intermediate_size"),
    ),
    MoeLayout(
        "Qwen3 MoE", "qwen3_moe", "Qwen3MoeForCausalLM", ("qwen3",), "num_experts",
        biases=_ATTENTION_BIASES,
        settings={"decoder_sparse_step": 1, "norm_topk_prob": True},
        sizes=("intermediate_size", "moe_intermediate_size"),
    ),
)  # fmt: skip


def choose_layout(file: MoeFile, types: Sequence[str]) -> MoeLayout:
    """The first architecture that can be made of the models of a file.

    Args:
        types: The ``model_type`` of each model of the file.

    Raises:
        WeightopsError: none fits, each with its reason; or ``architecture`` names none.
    """
    named = [layout for layout in LAYOUTS if layout.name.lower().startswith(file.architecture.lower())]
    if not named:
        names = [layout.name for layout in LAYOUTS]
        hint = nearest(file.architecture, names) or f"; available: {', '.join(names)}"
        raise WeightopsError(f"unknown architecture {file.architecture!r}{hint}")
    reasons = [layout.misfit(file, types) for layout in named]
    if None not in reasons:
        raise WeightopsError(
            *(f"{layout.name} {reason}; change the file" for layout, reason in zip(named, reasons, strict=True))
        )
    return named[reasons.index(None)]
