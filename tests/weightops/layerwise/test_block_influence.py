"""Block influence is 1 minus the mean cosine of what a layer gets and gives, as the whole model's hidden states say."""

import pytest
import tiny_architectures
import torch
from safetensors.torch import load_file, save_file

from weightops.errors import WeightopsError
from weightops.layerwise.block_influence import block_influence

ROWS = ((3, 4, 5, 6, 7), (8, 9), (10, 11, 12))


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_it_is_that_of_the_whole_models_hidden_states(family, tmp_path):
    (folder,) = tiny_architectures.save(tmp_path, family, [0])
    model, _ = tiny_architectures.load(folder, family)
    stack = next(module for name, module in model.named_modules() if name.endswith((".layers", ".h")))
    seen = {}
    for number, layer in enumerate(stack):
        layer.register_forward_hook(
            lambda _, inputs, output, number=number: seen.setdefault(number, []).append((inputs[0][0], output[0]))
        )
    with torch.no_grad():
        for row in ROWS:
            model(input_ids=torch.tensor([row]))
    for number, influence in enumerate(block_influence(folder, ROWS, progress=False)):
        cosines = [torch.cosine_similarity(a.double(), b.double(), dim=-1) for a, b in seen[number]]
        assert influence == pytest.approx(1 - float(torch.cat(cosines).mean()), abs=1e-6)


def test_a_layer_that_adds_nothing_has_no_influence(tmp_path):
    (folder,) = tiny_architectures.save(tmp_path, "llama", [0])
    tensors = load_file(folder / "model.safetensors")
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        tensors[f"model.layers.1.{name}.weight"].zero_()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    influences = block_influence(folder, ROWS, progress=False)
    assert len(influences) == 4
    assert influences[1] == pytest.approx(0, abs=1e-12)
    assert min(influences[0], *influences[2:]) > 1e-4


def test_rows_without_a_token_are_refused(tmp_path):
    with pytest.raises(WeightopsError, match="at least one token"):
        block_influence(tmp_path, [[1], []])
