"""The configuration of a mixture of experts that was made of dense models."""

from __future__ import annotations

from typing import Any

from ...algebra.checkpoint import Checkpoint
from ...algebra.loading import model_folder, transformers_reading
from .moe_jobs import MoeJobs
from .moe_layouts import MoeLayout


def moe_config(jobs: MoeJobs) -> dict[str, Any]:
    """The output's ``config.json``, as JSON values.

    The base's keys stay. Where its file leaves a key to its class, and the output's class has another default, the
    key is written: a Llama without ``rope_theta`` means 10,000, a Mixtral 1,000,000.

    Raises:
        WeightopsError: transformers cannot read the base's configuration.
    """
    file, layout, base = jobs.file, jobs.layout, jobs.base
    kept = {key: value for key, value in base.checkpoint.source.config.items() if key != "auto_map"}  # the base's code
    if "layer_types" in kept and "use_sliding_window" in layout.settings:
        kept["layer_types"] = ["full_attention"] * base.layers
    width = jobs.models[file.experts[0].model].widths[0]
    shared: dict[str, Any] = {}
    if layout.shared == "one":
        shared = {"n_shared_experts": len(file.shared) or None}
    elif layout.shared == "gated":
        shared = {"shared_expert_intermediate_size": jobs.models[file.shared[0].model].widths[0]}
    return {
        **kept,
        **_defaults(layout, base.checkpoint),
        **layout.settings,
        **dict.fromkeys(layout.sizes, width),
        **shared,
        layout.experts_key: len(file.experts),
        "num_experts_per_tok": file.experts_per_token,
        "model_type": layout.model_type,
        "architectures": [layout.architecture],
    }


def _defaults(layout: MoeLayout, base: Checkpoint) -> dict[str, Any]:
    """The keys that the base leaves to its class, where the output's class means something else by their absence."""
    from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

    with transformers_reading(base):
        full = AutoConfig.from_pretrained(str(model_folder(base))).to_dict()
    known = layout.model_type in CONFIG_MAPPING  # else the class is code on the hub, which is not read
    theirs = CONFIG_MAPPING[layout.model_type]().to_dict() if known else PreTrainedConfig().to_dict()
    missing = object()
    added = {
        key: value
        for key, value in full.items()
        if key not in base.source.config and (key in theirs or not known) and theirs.get(key, missing) != value
    }
    rope = added.pop("rope_parameters", None) or full.get("rope_parameters") or {}
    if "rope_theta" in rope and "rope_theta" not in base.source.config:  # older programs read it only here
        added["rope_theta"] = rope["rope_theta"]
    return added
