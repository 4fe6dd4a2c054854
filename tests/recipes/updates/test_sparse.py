import json
import os
import subprocess
import sys
from dataclasses import replace

import fake_bitsandbytes
import pytest
import torch
from tiny_chat import ragged_rows, write_chat_model

from weightops.algebra.loading import load
from weightops.algebra.opening import open_checkpoint
from weightops.errors import WeightopsError
from weightops.io.sparse_delta import FILE, read_sparse_delta
from weightops.recipes.floor import trainer
from weightops.recipes.floor.settings import Training
from weightops.recipes.floor.trainer import fit
from weightops.recipes.objectives.next_token import NextToken
from weightops.recipes.sparsity.entry_budget import sparse_layers
from weightops.recipes.updates.sparse import Sparse
from weightops.sparse.delta_file import load_entries

UPDATE = Sparse(density=0.05, every=5, phase=2, rank=4)
SHORT = Training(lr=1e-2, epochs=4, precision="fp32", save_dtype="float32", checkpoint_every=0, update=UPDATE)
LAYER = "model.layers.0.mlp.up_proj"


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory):
    return write_chat_model(tmp_path_factory.mktemp("chat"))


ROWS = ragged_rows(24)


def trained(chat_model, out, training=SHORT, **more):
    return fit(*load(chat_model, "float32"), ROWS, NextToken(2), training, out, **more)


def prepared(chat_model, update, frozen=frozenset()):
    model, _ = load(chat_model, "float32")
    return update.prepare(model, frozen, 0)


def test_the_file_holds_what_the_model_in_memory_learned(chat_model, tmp_path, monkeypatch):
    kept = {}
    write = Sparse.write
    monkeypatch.setattr(
        Sparse, "write", lambda self, model, *rest: (kept.update(model=model), write(self, model, *rest))
    )
    done = trained(chat_model, tmp_path / "out")
    assert done.losses[-1] < done.losses[0]
    assert sorted(path.name for path in done.folder.iterdir()) == ["README.md", FILE, "training.json"]
    delta, base = read_sparse_delta(done.folder / FILE, "out"), open_checkpoint(str(chat_model))
    assert sorted(delta.tensors) == sorted(n for n in base.source.tensors if n.endswith("_proj.weight"))
    parameters = sum(parameter.numel() for parameter in load(chat_model, "float32")[0].parameters())
    assert 0.9 * 0.05 * parameters < delta.entries <= 0.05 * parameters
    before = load(chat_model, "float32")[0].get_parameter(f"{LAYER}.weight")
    layer = sparse_layers(kept["model"])[LAYER]
    moved = (layer.weight - before).reshape(-1).nonzero().reshape(-1)
    assert set(moved.tolist()) <= set(layer.positions.flat.tolist())
    assert len(moved) > 0.9 * delta.tensors[f"{LAYER}.weight"].entries
    card = (done.folder / "README.md").read_text()
    assert "sparse delta" in card
    assert "LoRA" not in card
    assert f'weightops.open("{chat_model}+.")' in card
    applied = open_checkpoint(f"{chat_model}+{done.folder}")
    torch.testing.assert_close(applied.tensor(f"{LAYER}.weight").float(), layer.weight.detach(), rtol=2**-7, atol=0)


class _StoppedError(Exception):
    """Stands for a killed process."""


@pytest.mark.parametrize("select", ["ag", "ma"])
def test_a_run_stopped_within_a_phase_resumes_to_the_same_bytes_and_its_checkpoint_holds_no_weights(
    chat_model, tmp_path, monkeypatch, select
):
    training = replace(SHORT, checkpoint_every=6, update=replace(UPDATE, select=select))
    whole = trained(chat_model, tmp_path / "whole", training)
    on_step_end = trainer._Watch.on_step_end

    def stop(self, args, state, control, **more):
        if state.global_step == 7:  # steps 6 and 7 gather gradients; the checkpoint is of step 6
            raise _StoppedError
        on_step_end(self, args, state, control, **more)

    with monkeypatch.context() as patch:
        patch.setattr(trainer._Watch, "on_step_end", stop)
        with pytest.raises(_StoppedError):
            trained(chat_model, tmp_path / "out", training)
    checkpoint = tmp_path / ".out.training" / "checkpoint-6"
    assert not list(checkpoint.glob("*.safetensors"))
    again = trained(chat_model, tmp_path / "out", training)
    assert again.losses == whole.losses
    assert (tmp_path / "out" / FILE).read_bytes() == (tmp_path / "whole" / FILE).read_bytes()


@pytest.mark.parametrize("arguments", [{"gradient_checkpointing": True}, {"max_steps": 5}])
def test_other_arguments_of_transformers_work(chat_model, tmp_path, arguments):
    plain = trained(chat_model, tmp_path / "plain")
    other = trained(chat_model, tmp_path / "other", replace(SHORT, arguments=arguments))
    if "max_steps" in arguments:
        assert len(other.losses) == 5
    else:
        assert other.losses == pytest.approx(plain.losses, abs=1e-4)


def test_bf16_trains_too(chat_model, tmp_path):
    done = trained(chat_model, tmp_path / "out", replace(SHORT, precision="bf16", epochs=6))
    assert done.losses[-1] < done.losses[0]


def test_over_4_bits_it_learns_what_it_learns_over_the_rounded_weights_and_the_delta_names_the_base_as_stored(
    chat_model, tmp_path, monkeypatch
):
    fake_bitsandbytes.install(monkeypatch)
    update = replace(UPDATE, base_bits=4, targets=("down_proj", "v_proj"))
    model, tokenizer = load(chat_model, update.base_dtype)
    assert model.dtype == torch.bfloat16
    fit(model, tokenizer, ROWS, NextToken(2), replace(SHORT, update=update), tmp_path / "packed")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32, torch.uint8}
    rounded, _ = load(chat_model, "float32")
    for module in rounded.modules():
        if isinstance(module, torch.nn.Linear) and module is not rounded.get_output_embeddings():
            module.weight.data = fake_bitsandbytes.dequantize_4bit(*fake_bitsandbytes.quantize_4bit(module.weight.data))
    plain = replace(SHORT, update=replace(update, base_bits=32))
    fit(rounded, tokenizer, ROWS, NextToken(2), plain, tmp_path / "plain")
    one, two = (read_sparse_delta(tmp_path / name / FILE, name) for name in ("packed", "plain"))
    assert one.tensors.keys() == two.tensors.keys()
    for name, tensor in one.tensors.items():
        assert tensor.base_digest == two.tensors[name].base_digest
        first, second = load_entries(tensor), load_entries(two.tensors[name])
        assert first.indices.tolist() == second.indices.tolist()
        assert first.values.tobytes() == second.values.tobytes()
    assert one.about.made["update"]["base_bits"] == 4
    open_checkpoint(f"{chat_model}+{tmp_path / 'packed'}").save(tmp_path / "tuned")  # the digests are the stored base's


@pytest.mark.slow
def test_bitsandbytes_trains(chat_model, tmp_path):
    pytest.importorskip("bitsandbytes")
    update = replace(UPDATE, base_bits=4, targets=("down_proj", "v_proj"))
    training = replace(SHORT, update=update)
    done = fit(*load(chat_model, update.base_dtype), ROWS, NextToken(2), training, tmp_path / "out", held_out=ROWS[:2])
    assert done.losses[-1] < done.losses[0]


def test_4_bits_without_bitsandbytes_are_refused_in_one_line(chat_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(WeightopsError, match=r"^bitsandbytes: not installed; pip install 'weightops\[quantised\]'$"):
        prepared(chat_model, Sparse(density=0.05, base_bits=4))


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_only_sparse_trains_over_4_bits(kind):
    from weightops.recipes.floor.checking import read_settings

    _, faults = read_settings(Training, {"update": {"kind": kind, "base_bits": 4}})
    assert len(faults) == 1
    assert "unknown key 'base_bits'" in faults[0].problem


@pytest.mark.parametrize(
    ("update", "frozen", "message"),
    [
        (Sparse(density=1e-5), (), r"training.update.density: 1e-05 leaves 14 of 14 layers .* choose at least 0.0\d+$"),
        (Sparse(density=0.9), (), r"training.update.density: 0.9 of .* choose at most 0\.\d+$"),
        (
            Sparse(targets=("w1",)),
            (),
            r"'w1' matches no linear layer that is not frozen; these are down_proj, gate_proj",
        ),
        (Sparse(targets=("q_proj", "k_pro")), (), r"^training.update.targets: 'k_pro' matches no"),
        (Sparse(targets=("lm_head",)), (), r"embed_tokens.weight and lm_head.weight are one weight; leave it out"),
        (Sparse(), ("attention", "mlp"), r"every linear layer is frozen"),
    ],
)
def test_what_cannot_train_is_refused_in_one_line(chat_model, update, frozen, message):
    from weightops.recipes.floor.model import frozen_names

    model, _ = load(chat_model, "float32")
    with pytest.raises(WeightopsError, match=message) as refused:
        update.prepare(model, frozen_names(model, frozen), 0)
    assert len(refused.value.problems) == 1


def test_the_least_density_that_a_message_names_is_enough(chat_model):
    with pytest.raises(WeightopsError) as refused:
        prepared(chat_model, Sparse(density=1e-5))
    least = float(str(refused.value).rpartition(" ")[2])
    layers = sparse_layers(prepared(chat_model, Sparse(density=least * 1.05)))
    assert min(len(layer.learned) for layer in layers.values()) >= 1


def test_weights_cut_over_processes_are_refused(chat_model, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(WeightopsError, match="sparse needs whole weights on every process, and FSDP cuts them"):
        prepared(chat_model, UPDATE)


def test_a_phase_as_long_as_a_round_is_refused():
    from weightops.recipes.floor.checking import check

    with pytest.raises(WeightopsError, match=r"update.phase: must be less than every \(5\); found 5"):
        check(Training(update=Sparse(every=5, phase=5)))


TWO = """
import json, sys
from weightops.algebra.loading import load
from weightops.recipes.floor.settings import Training
from weightops.recipes.floor.trainer import fit
from weightops.recipes.objectives.next_token import NextToken
from weightops.recipes.sparsity.entry_budget import sparse_layers
from weightops.recipes.updates.sparse import Sparse
from torch import distributed
from pathlib import Path
base, out, select = sys.argv[1:]
rows = json.loads(Path(out, "rows.json").read_text())
update = Sparse(density=0.05, every=5, phase=2, select=select)
training = Training(lr=1e-2, epochs=4, precision="fp32", save_dtype="float32", checkpoint_every=0, update=update)
model, tokenizer = load(base, "float32")
fit(model, tokenizer, rows, NextToken(2), training, Path(out, "model"))
places = {name: layer.positions.flat.tolist() for name, layer in sparse_layers(model).items()}
learned = {name: layer.learned.tolist() for name, layer in sparse_layers(model).items()}
Path(out, f"rank{distributed.get_rank()}.json").write_text(json.dumps([places, learned]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("select", ["ag", "ma"])
def test_two_processes_choose_the_same_entries_and_as_many_as_one(chat_model, tmp_path, select):
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0", "--standalone"]
    script = tmp_path / "two.py"
    script.write_text(TWO)
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [*command, script, str(chat_model), str(tmp_path), select], capture_output=True, text=True, env=environment
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    one, two = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2))
    assert one == two
    trained(chat_model, tmp_path / "alone", replace(SHORT, update=replace(UPDATE, select=select)))
    alone = read_sparse_delta(tmp_path / "alone" / FILE, "alone")
    both = read_sparse_delta(tmp_path / "model" / FILE, "both")
    assert {name: tensor.entries for name, tensor in alone.tensors.items()} == {
        name: tensor.entries for name, tensor in both.tensors.items()
    }
