"""A model of transformers without weights, into which and out of which weights are put tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..algebra.checkpoint import Checkpoint
from ..algebra.loading import model_folder, transformers_reading
from ..errors import WeightopsError, short
from ..io.quiet import quiet_transformers


def without_weights(checkpoint: Checkpoint, device: torch.device, trust_remote_code: bool) -> Any:
    """The model as transformers builds it, on the meta device, with its computed tables on ``device``.

    Raises:
        WeightopsError: transformers cannot build it.
    """
    folder = str(model_folder(checkpoint))
    with transformers_reading(checkpoint):
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            build: Any = AutoModelForCausalLM.from_config
            model = build(config, dtype=torch.float32, trust_remote_code=trust_remote_code)
    if any("experts" in name for name, _ in model.named_modules()):
        model.set_experts_implementation("eager")  # one product for each expert, so that its inputs can be seen
    _compute_tables(model, device)
    return model.eval()


def _compute_tables(model: Any, device: torch.device) -> None:
    """Compute what no file holds, such as the frequencies of rotary embeddings."""
    for name, buffer in list(model.named_non_persistent_buffers()):
        module, _, last = name.rpartition(".")
        empty = torch.empty_like(buffer, device=device)
        model.get_submodule(module).register_buffer(last, empty, persistent=False)
    with quiet_transformers():
        model.initialize_weights()


def conversions(model: Any) -> list[Any]:
    """How transformers makes the tensors of the modules from those of a checkpoint: renamed, fused, split."""
    from transformers.conversion_mapping import get_model_conversion_mapping

    return list(get_model_conversion_mapping(model))


def read_into(
    model: Any, checkpoint: Checkpoint, names: Iterable[str], rules: list[Any], device: torch.device
) -> set[str]:
    """Read tensors of a checkpoint into a model, in fp32.

    Args:
        names: Tensors of the checkpoint.
        rules: The model's :func:`conversions`.

    Returns:
        The names of the model's own tensors that were set.

    Raises:
        WeightopsError: a tensor has another shape than the configuration says, or cannot be converted.
    """
    from transformers.core_model_loading import convert_and_load_state_dict_in_model
    from transformers.modeling_utils import LoadStateDictConfig

    wanted = {name: _Stored(checkpoint, name) for name in names}
    settings = LoadStateDictConfig(device_map={"": str(device)}, dtype=torch.float32, weight_mapping=rules)
    with quiet_transformers():
        info, _ = convert_and_load_state_dict_in_model(model, wanted, settings)
        model.tie_weights(missing_keys=set(info.missing_keys), recompute_mapping=False)
    if wrong := [*sorted(info.conversion_errors), *(entry[0] for entry in sorted(info.mismatched_keys, key=str))]:
        raise WeightopsError(
            f"{checkpoint.spec}: {short(wrong[0])} has another shape than config.json says; check that the two belong "
            "together"
        )
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return {name for name in model.state_dict() if name not in info.missing_keys}


def put(model: Any, name: str, tensor: Tensor) -> None:
    """Put a tensor in the place of a model's parameter or buffer."""
    module, _, last = name.rpartition(".")
    owner = model.get_submodule(module)
    if last in owner._buffers:
        owner._buffers[last] = tensor
    else:
        owner._parameters[last] = torch.nn.Parameter(tensor, requires_grad=False)


@dataclass(frozen=True)
class _Stored:
    """A tensor of a checkpoint that is computed when transformers takes it, as it takes slices of files."""

    checkpoint: Checkpoint
    name: str

    def __getitem__(self, whole: object) -> Tensor:
        return self.checkpoint.tensor(self.name)
