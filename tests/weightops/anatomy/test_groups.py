"""A tensor's part of the model is told by its name, for the families there are."""

from __future__ import annotations

import pytest

from weightops.anatomy.groups import GROUPS, before_layers, embedding_of, group_of, is_head

NAMES = {
    "attention": [
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.11.self_attn.o_proj.bias",
        "transformer.h.3.attn.c_attn.weight",
        "gpt_neox.layers.0.attention.query_key_value.weight",
        "bert.encoder.layer.0.attention.self.query.weight",
        "bert.encoder.layer.0.attention.output.dense.weight",
        "rwkv.blocks.0.attention.key.weight",
        "encoder.block.0.layer.0.SelfAttention.o.weight",
    ],
    "mlp": [
        "model.layers.0.mlp.gate_proj.weight",
        "model.layers.0.mlp.experts.3.down_proj.weight",
        "model.layers.0.block_sparse_moe.gate.weight",
        "transformer.h.3.mlp.c_fc.weight",
        "blk.0.ffn_up.weight",
        "bert.encoder.layer.0.intermediate.dense.weight",
        "bert.encoder.layer.0.output.dense.weight",
        "rwkv.blocks.0.feed_forward.key.weight",
        "encoder.block.0.layer.1.DenseReluDense.wo.weight",
        "model.layers.0.mlp.router.classifier.weight",
    ],
    "norm": [
        "model.norm.weight",
        "model.layers.0.input_layernorm.weight",
        "model.layers.0.self_attn.q_norm.weight",
        "transformer.h.0.ln_1.weight",
        "transformer.ln_f.bias",
        "bert.encoder.layer.0.output.LayerNorm.weight",
        "output_norm.weight",
    ],
    "embedding": [
        "model.embed_tokens.weight",
        "transformer.wte.weight",
        "transformer.wpe.weight",
        "gpt_neox.embed_in.weight",
    ],
    "head": [
        *("lm_head.weight", "embed_out.weight", "score.weight", "model.lm_head.bias", "output.weight"),
        *("transformer.output_layer.weight", "cls.predictions.transform.dense.weight", "model.llm.unembed.weight"),
    ],
    "other": ["model.rotary.inv_freq", "x", ""],
}


@pytest.mark.parametrize(("name", "group"), [(name, group) for group, names in NAMES.items() for name in names])
def test_the_group_of_a_name(name, group):
    assert group_of(name) == group


def test_the_groups_are_those_that_names_fall_into():
    assert set(GROUPS) == set(NAMES)


@pytest.mark.parametrize(("family", "tied"), [("llama", False), ("qwen3", True), ("gemma3", False)])
def test_every_tensor_of_a_transformers_model_has_a_part(family, tied, tmp_path):
    import tiny_models as tiny

    tiny.transformer(tmp_path / "m", family, tied=tied)
    groups = {name: group_of(name) for name in tiny.read(tmp_path / "m")}
    assert "other" not in groups.values()
    assert {name for name, group in groups.items() if group in ("embedding", "norm", "head")} == {
        name for name in groups if tiny.left_out(name)
    }


def test_a_head_gives_the_logits_of_the_vocabulary_and_nothing_else():
    heads = ("lm_head.weight", "transformer.output_layer.weight", "cls.predictions.decoder.weight", "output.weight")
    others = ("lm_head.bias", "lm_head.dense.weight", "score.weight", "vision_tower.head.weight", "mtp.lm_head.weight")
    layered = ("bert.encoder.layer.0.output.dense.weight", "model.layers.0.output.weight")
    assert [is_head(name) for name in (*heads, *others, *layered)] == [True] * 4 + [False] * 7


def test_the_token_embedding_is_the_shared_one_or_the_encoders():
    names = ["decoder.embed_tokens.weight", "encoder.embed_tokens.weight", "encoder.embed_positions.weight"]
    assert embedding_of(names) == "encoder.embed_tokens.weight"
    assert embedding_of([*names, "shared.weight"]) == "shared.weight"
    assert embedding_of(["transformer.wte.weight", "visual.embeddings.weight"]) == "transformer.wte.weight"
    assert embedding_of(["model.norm.weight"]) is None


def test_a_final_norm_is_behind_the_layers_whatever_it_is_called():
    assert not before_layers("model.embedding_norm.weight")  # LFM2's
    assert not before_layers("esm.encoder.emb_layer_norm_after.weight")
    assert before_layers("bert.embeddings.LayerNorm.weight")
