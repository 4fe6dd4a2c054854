"""LoRA adapters on tiny models, made and saved by PEFT, and what PEFT computes with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import weightops as wo


def peft_adapter(base: Path, to: Path, seed: int = 3, **config: Any) -> Path:
    """A random LoRA made and saved by PEFT on a model."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(task_type="CAUSAL_LM", **config))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name or (parameter.requires_grad and name.endswith("bias")):
                parameter.normal_(0, 0.1)
    model.save_pretrained(to)
    return to


def logits(base: Path, adapter: Path) -> torch.Tensor:
    """What the base with an adapter says, by PEFT, fp64."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base).double(), adapter).double().eval()
    with torch.no_grad():
        return model(torch.arange(1, 13)[None]).logits


def products(adapter: Path) -> dict[str, torch.Tensor]:
    """What an adapter adds to each weight, as its factors say, in the weight's orientation."""
    changes = wo.open_adapter(adapter).changes[0].of
    files = {side.file for update in changes.updates.values() for side in (update.left, update.right)}
    stored = {file: load_file(file) for file in files}
    dense = {}
    for name, update in changes.updates.items():
        left, right = (stored[side.file][side.name].double() for side in (update.left, update.right))
        product = update.scale * left @ right
        dense[name] = product.T if update.transposed else product
    return dense


def assert_same_products(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], within: float = 1e-6) -> None:
    """Two adapters add the same to every weight, to a share of the size of what they add; missing is nothing."""
    for name in one.keys() | other.keys():
        there = [each[name] for each in (one, other) if name in each]
        first, second = (each.get(name, torch.zeros_like(there[0])) for each in (one, other))
        far = (first - second).norm()
        assert far <= within * max(float(first.norm()), 1e-12), (name, float(far))


def change_tensors(adapter: Path, change: Any) -> None:
    """Rewrite an adapter's tensors."""
    file = adapter / "adapter_model.safetensors"
    save_file({name: change(name, tensor) for name, tensor in load_file(file).items()}, file)
