"""A model by name is what transformers loads; BASE+ADAPTER is what PEFT runs, to rounding, and what saving writes."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_chat import write_chat_model
from transformers import AutoModelForCausalLM

import weightops as wo
from weightops.algebra.loading import load
from weightops.errors import WeightopsError

IDS = torch.tensor([[5, 6, 7, 8, 9]])


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_chat_model(tmp_path_factory.mktemp("loading") / "base")


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "down_proj"]),
    )
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(0, 0.1)
    folder = tmp_path_factory.mktemp("loading") / "adapter"
    model.save_pretrained(folder)
    return folder


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS).logits.float()


def test_a_folder_is_what_transformers_loads_and_keeps_the_name_it_was_given(base):
    model, tokenizer = load(base)
    assert model.dtype == torch.bfloat16
    assert torch.equal(logits(model), logits(AutoModelForCausalLM.from_pretrained(base)))
    assert model.name_or_path == str(base)
    assert tokenizer.chat_template


def test_an_adapter_is_added_as_saving_adds_it_and_peft_runs_it(base, adapter, tmp_path):
    model, _ = load(f"{base}+{adapter}", "float32")
    saved = wo.open(f"{base}+{adapter}").save(tmp_path / "saved", progress=False)
    assert torch.equal(logits(model), logits(AutoModelForCausalLM.from_pretrained(saved, dtype=torch.float32)))
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    before = logits(plain)
    wanted = logits(PeftModel.from_pretrained(plain, adapter))
    assert (logits(model) - wanted).abs().max() < 0.1 * (before - wanted).abs().max()


def test_an_adapters_tensors_are_planned_once_and_the_tokenizer_is_read_once(base, adapter, monkeypatch):
    import transformers

    from weightops.algebra import checkpoint

    calls = {"plans": 0, "tokenizers": 0}
    plan, tokenizer = checkpoint.make_plan, transformers.AutoTokenizer.from_pretrained

    def counted(kind, function):
        def call(*args, **more):
            calls[kind] += 1
            return function(*args, **more)

        return call

    monkeypatch.setattr(checkpoint, "make_plan", counted("plans", plan))
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", counted("tokenizers", tokenizer))
    model, _ = load(f"{base}+{adapter}")
    assert calls == {"plans": 1, "tokenizers": 1}
    assert model.lm_head.weight is model.model.embed_tokens.weight  # tied weights stay one


def test_an_adapter_of_another_model_is_refused(adapter, tmp_path):
    other = write_chat_model(tmp_path / "other")
    config = (other / "config.json").read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 1')
    (other / "config.json").write_text(config)
    weights = wo.open(other)
    names = [name for name in weights.names if ".layers.1." not in name]
    from safetensors.torch import save_file

    save_file({name: weights.tensor(name) for name in names}, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(WeightopsError, match="this adapter is for another base"):
        load(f"{other}+{adapter}")


def test_a_bare_file_is_refused(base):
    with pytest.raises(WeightopsError, match=r"a bare file has no configuration.*name the model's folder"):
        load(base / "model.safetensors")
