"""PEFT reads what we export and says the same; what it saved comes in with the same numbers."""

from __future__ import annotations

import json

import pytest
import tiny_models as tiny
import torch
from safetensors.torch import load_file, save_file
from sparse_files import delta_of, drawn

import weightops as wo
from weightops.errors import WeightopsError
from weightops.io.sparse_delta import read_sparse_delta
from weightops.sparse.peft_layout import export_peft, import_peft
from weightops.sparse.sparse_merge import merge_sparse

LAYERS = [
    f"model.layers.{i}.{part}.weight" for i in (0, 1) for part in ("self_attn.q_proj", "mlp.up_proj", "mlp.down_proj")
]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.transformer(tmp_path_factory.mktemp("m") / "base", "llama", tied=False)


def sparse(base, out, share=0.1):
    """A delta whose share of entries differs from layer to layer."""
    tensors = tiny.read(base)
    return delta_of(
        out, base, {n: drawn(tensors[n].shape, share / (1 + i), i) for i, n in enumerate(LAYERS)}, base=str(base)
    )


def model_logits(folder):
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder).eval()(torch.arange(1, 13)[None]).logits


def peft_logits(base, adapter):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
    with torch.no_grad():
        return model(torch.arange(1, 13)[None]).logits


def test_stock_peft_says_the_same_and_it_comes_back(base, tmp_path):
    file = sparse(base, tmp_path / "d.safetensors")
    adapter = export_peft(read_sparse_delta(file, "d"), tmp_path / "adapter")
    tuned = wo.open(f"{base}+{file}").save(tmp_path / "tuned", progress=False)
    assert torch.equal(peft_logits(base, adapter), model_logits(tuned))
    assert not torch.equal(model_logits(tuned), model_logits(base))
    back = import_peft(adapter).save(tmp_path / "back.safetensors")
    for name in LAYERS:
        assert torch.equal(*(wo.open(f"{base}+{each}").tensor(name) for each in (file, back)))


def test_a_shira_adapter_that_peft_saved_is_read_and_ours_is_half_its_size(base, tmp_path):
    from peft import ShiraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = ShiraConfig(
        r=2, target_modules=["q_proj", "up_proj", "down_proj"], task_type="CAUSAL_LM", init_weights=False
    )
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(tmp_path / "shira")
    file = tmp_path / "shira" / "adapter_model.safetensors"
    out = import_peft(tmp_path / "shira", base=base).save(tmp_path / "d.safetensors")
    tuned = wo.open(f"{base}+{out}").save(tmp_path / "tuned", progress=False)
    torch.testing.assert_close(model_logits(tuned), peft_logits(base, tmp_path / "shira"))
    halves = merge_sparse([out], method="sum", dtype="bfloat16").save(tmp_path / "halves.safetensors")
    ours, theirs = (sum(tensor.nbytes for tensor in load_file(each).values()) for each in (halves, file))
    assert ours <= theirs / 2.9  # 4 bytes an entry against 12, and 4 for each block; the headers come on top


def test_what_peft_cannot_hold_is_named(base, tmp_path):
    file = delta_of(tmp_path / "d.safetensors", base, {"model.norm.weight": drawn((16,), 0.2, 0)})
    with pytest.raises(WeightopsError, match=r"model.norm.weight: PEFT's Super-Tuning changes only"):
        export_peft(read_sparse_delta(file, "d"), tmp_path / "adapter")


AT = "base_model.model.model.layers.0.mlp.up_proj.supertuning_"


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"values": torch.ones(2), "indices": torch.tensor([0, 512], dtype=torch.int32)}, "outside its 512 elements"),
        ({"values": torch.ones(2), "indices": torch.tensor([0, -1], dtype=torch.int32)}, "outside its 512 elements"),
        ({"values": torch.ones(3), "indices": torch.tensor([0, 1], dtype=torch.int32)}, "one position for each value"),
        ({"values": torch.ones(2), "indices": torch.tensor([0.0, 1.0])}, "one position for each value"),
        ({"values": torch.ones(2)}, "it needs just"),
        ({"values": torch.ones(2), "indices": torch.tensor([0, 1]), "lora_A": torch.ones(2)}, "it needs just"),
    ],
)
def test_a_damaged_adapter_is_refused_with_the_layers_name(parts, words, base, tmp_path):
    save_file({f"{AT}{part}": tensor for part, tensor in parts.items()}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "SUPERTUNING"}))
    with pytest.raises(WeightopsError, match=words) as caught:
        import_peft(tmp_path, base=base).save(tmp_path / "d.safetensors")
    assert "layers.0.mlp.up_proj" in str(caught.value)


def test_other_adapters_are_refused(base, tmp_path):
    adapter = tiny.lora(tmp_path / "lora", tiny.read(base), [LAYERS[0]], 1)
    with pytest.raises(WeightopsError, match="'LORA', not SUPERTUNING or SHIRA"):
        import_peft(adapter, base=base)
