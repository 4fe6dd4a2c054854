"""A loaded model wears other weights: those that saving would write, and afterwards its own again, byte for byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_models as tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import weightops as wo
from weightops.algebra import patching
from weightops.algebra.loading import load
from weightops.algebra.patching import PatchedModel
from weightops.errors import WeightopsError


class Family:
    """A base, two models tuned from it and an adapter, in one dtype, and the base loaded."""

    def __init__(self, folder: Path, dtype: torch.dtype, *, tied: bool) -> None:
        plain = tiny.transformer(folder / "base", "llama", tied=tied)
        tensors = tiny.cast(load_file(plain / "model.safetensors"), dtype)
        tiny.rewrite(plain, tensors)
        for seed, name in enumerate("ab"):
            tiny.rewrite(tiny.copy(plain, folder / name), tiny.perturbed(tensors, seed))
        query = "model.layers.1.self_attn.q_proj.weight"
        adapter = tiny.lora(folder / "adapter", tensors, [query], 0)
        self.folder = folder
        self.base, self.a, self.b = (wo.open(folder / name) for name in ("base", "a", "b"))
        self.adapted = wo.open(f"{folder / 'base'}+{adapter}")
        self.model, _ = load(self.base)
        self.before = {name: (t.clone(), t.data_ptr()) for name, t in self.model.state_dict().items()}

    def mix(self, kind: str, weight: float) -> Any:
        """A candidate: affine, by a merge method, or with an adapter."""
        deltas = [self.a - self.base, self.b - self.base]
        if kind == "ties":
            return wo.ties(deltas, density=0.3, weight=weight).on(self.base)
        if kind == "metagpt":
            return wo.metagpt(deltas).on(self.base)
        return (self.adapted if kind == "adapter" else self.base) + weight * deltas[0]

    def is_itself(self) -> bool:
        """Whether the model has its own weights, at their own addresses."""
        now = self.model.state_dict()
        return all(tiny.same_bytes(now[n], t) and now[n].data_ptr() == place for n, (t, place) in self.before.items())


@pytest.fixture(scope="module", params=[(torch.bfloat16, True), (torch.float32, False)], ids=["bf16-tied", "fp32"])
def family(request, tmp_path_factory):
    dtype, tied = request.param
    return Family(tmp_path_factory.mktemp("family"), dtype, tied=tied)


CANDIDATE = st.tuples(
    st.sampled_from(["affine", "ties", "metagpt", "adapter"]), st.floats(-2, 2), st.sampled_from([None, ValueError])
)


@given(st.lists(CANDIDATE, min_size=1, max_size=4), st.booleans())
@settings(max_examples=15)
def test_worn_weights_are_those_of_saving_and_the_model_gets_its_own_back(family, candidates, wide):
    """In any order, whatever is skipped because it is in memory already, and if the block fails."""
    patched = PatchedModel(family.model, torch.float32 if wide else None)
    for kind, weight, failure in candidates:
        mix = family.mix(kind, weight)
        expected = {name: mix.tensor(name) for name in mix.names}
        try:
            with patched.wearing(mix.plan(), threads=2) as worn:
                now = worn.state_dict()
                for name, tensor in expected.items():
                    assert tiny.same_bytes(now[name], tensor.float() if wide else tensor), name
                if failure:
                    raise failure
        except ValueError:
            pass
        assert family.is_itself()


def test_the_patched_model_answers_as_the_saved_and_loaded_one_does(family, tmp_path):
    mix = family.mix("ties", 0.7)
    loaded, _ = load(mix.save(tmp_path / "saved", progress=False))
    ids = torch.tensor([[3, 5, 8, 9]])
    with torch.no_grad():
        alone = family.model(ids).logits
        with PatchedModel(family.model).wearing(mix.plan()) as worn:
            assert torch.equal(worn(ids).logits, loaded(ids).logits)
        assert torch.equal(family.model(ids).logits, alone)
    assert not torch.equal(alone, loaded(ids).logits)


def test_ctrl_c_while_weights_are_computed_or_worn_leaves_the_model_as_it_was(family, monkeypatch):
    patched, mix = PatchedModel(family.model), family.mix("affine", 0.5)

    def interrupted(*args: Any, **settings: Any) -> None:
        fill(*args, **settings)
        raise KeyboardInterrupt

    fill = patching.fill
    monkeypatch.setattr(patching, "fill", interrupted)
    with pytest.raises(KeyboardInterrupt), patched.wearing(mix.plan()):
        pass
    assert family.is_itself()
    monkeypatch.undo()
    with pytest.raises(KeyboardInterrupt), patched.wearing(mix.plan()):
        raise KeyboardInterrupt
    assert family.is_itself()


def test_only_what_differs_from_the_last_weights_is_computed(family, monkeypatch):
    computed: list[list[str]] = []
    fill = patching.fill

    def counting(jobs: Any, *args: Any, **settings: Any) -> None:
        computed.append([job.name for job in jobs])
        fill(jobs, *args, **settings)

    monkeypatch.setattr(patching, "fill", counting)
    patched = PatchedModel(family.model)
    for plan in (family.base.plan(), family.adapted.plan(), family.adapted.plan()):
        with patched.wearing(plan):
            pass
    assert [len(names) for names in computed[::2]] == [len(family.base.names), 1, 0]


def test_a_source_with_nan_is_refused_and_the_next_candidate_is_whole(family, tmp_path):
    name = "model.norm.weight"
    tensors = load_file(family.folder / "a" / "model.safetensors")
    tensors[name] = tensors[name].clone().fill_(float("nan"))
    tiny.rewrite(tiny.copy(family.folder / "a", tmp_path / "broken"), tensors)
    patched = PatchedModel(family.model)
    broken = family.base + 0.5 * (wo.open(tmp_path / "broken") - family.base)
    with pytest.raises(WeightopsError, match=f"{name} holds NaN"), patched.wearing(broken.plan()):
        pass
    mix = family.mix("affine", 0.25)
    with patched.wearing(mix.plan()) as worn:
        assert all(tiny.same_bytes(worn.state_dict()[name], mix.tensor(name)) for name in mix.names)


def test_models_that_do_not_fit_are_refused(family, tmp_path):
    patched = PatchedModel(family.model)
    larger = wo.open(tiny.transformer(tmp_path / "larger", "llama", tied=False, vocab=32))
    with pytest.raises(WeightopsError, match="must share an architecture"), patched.wearing(larger.plan()):
        pass
    other = wo.open(tiny.write(tmp_path / "other", {"transformer.wte.weight": torch.zeros(2, 2)}))
    with pytest.raises(WeightopsError, match="of another architecture"), patched.wearing(other.plan()):
        pass


def test_two_weights_for_one_tied_tensor_are_refused(tmp_path):
    tied = tiny.transformer(tmp_path / "tied", "llama", tied=True)
    model, _ = load(tied)
    tensors = load_file(tied / "model.safetensors")
    for name, factor in (("same", 1.0), ("differs", 2.0)):
        head = {"lm_head.weight": factor * tensors["model.embed_tokens.weight"]}
        tiny.rewrite(tiny.copy(tied, tmp_path / name), tensors | head)
    with PatchedModel(model).wearing(wo.open(tmp_path / "same").plan()):
        pass
    with (
        pytest.raises(WeightopsError, match="ties it to another tensor"),
        PatchedModel(model).wearing(wo.open(tmp_path / "differs").plan()),
    ):
        pass
