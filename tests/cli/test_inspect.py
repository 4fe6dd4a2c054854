"""``weightops inspect``: the table and JSON, of a model and of one with an adapter."""

import json

import pytest
import tiny_models as tiny
from click.testing import CliRunner
from tiny_chat import write_chat_model

from weightops.cli.inspect import command


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_chat_model(tmp_path_factory.mktemp("inspect"))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    return tiny.lora_of_ones(folder, "model.layers.0.self_attn.q_proj", (32, 32), r=1)


def run(*args):
    result = CliRunner().invoke(command, [str(arg) for arg in args])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_parts_are_counted_by_tensors_parameters_and_bytes(base):
    rows = {line.split()[0]: line.split()[1:] for line in run(base).splitlines()[1:]}
    assert rows["norm"] == ["5", "160", "320", "B", "BF16"]
    assert rows["attention"][0] == "8"
    assert rows["mlp"][:2] == ["6", f"{2 * 3 * 32 * 64:,}"]


def test_of_base_plus_adapter_it_says_what_the_adapter_changes(base, adapter):
    head, *lines = run(f"{base}+{adapter}").splitlines()
    assert head.split()[-1] == "changed"
    assert {line.split()[0]: line.split()[-1] for line in lines} == {
        "attention": "1", "mlp": "0", "norm": "0", "embedding": "0",
    }  # fmt: skip
    tensors = json.loads(run(f"{base}+{adapter}", "--json"))
    assert [name for name, entry in tensors.items() if entry["changed"]] == ["model.layers.0.self_attn.q_proj.weight"]


def test_of_a_gguf_it_prints_what_the_file_stores_and_converts_nothing(base, adapter, tmp_path, monkeypatch):
    from tiny_gguf import write_gguf
    from transformers import AutoTokenizer

    monkeypatch.setenv("WEIGHTOPS_CACHE", str(tmp_path / "cache"))
    write_gguf(tmp_path / "tiny.gguf", AutoTokenizer.from_pretrained(base))
    rows = {line.split()[0]: line.split()[1:] for line in run(tmp_path / "tiny.gguf").splitlines()[1:]}
    assert rows["mlp"][-1] == "Q8_0"
    assert rows["norm"][-1] == "F32"
    both = json.loads(run(f"{tmp_path / 'tiny.gguf'}+{adapter}", "--json"))
    assert [name for name, tensor in both.items() if tensor["changed"]] == ["model.layers.0.self_attn.q_proj.weight"]
    assert not (tmp_path / "cache").exists()
