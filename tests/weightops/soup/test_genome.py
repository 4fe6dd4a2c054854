"""What a genome describes is what mergekit-evolve's describes, for any genes."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_models as tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from merge_files import assert_close, family, ours, theirs

from weightops.merge.config.reading import parse
from weightops.soup.candidate import Candidate
from weightops.soup.genome import SEARCHED, Genome

oracle = pytest.importorskip("mergekit.evo.genome")
LAYERS = 4
MODELS = ("org/a", "org/b", "org/c")


def mergekits(genome: Genome) -> object:
    """mergekit's genome of the same definition; its constructor would ask the hub for a configuration."""
    made = object.__new__(oracle.ModelGenome)
    made.num_layers = LAYERS
    made.definition = oracle.ModelGenomeDefinition.model_validate(
        {
            "models": list(genome.models), "merge_method": genome.method, "base_model": genome.base,
            "tokenizer_source": genome.tokenizer, "layer_granularity": genome.granularity,
            "normalize": genome.normalize, "allow_negative_weights": genome.negative,
            "filters": list(genome.filters) or None, "smooth": genome.smooth,
        }
    )  # fmt: skip
    return made


def as_mergekit_reads(document: dict) -> dict:
    """A merge file as mergekit holds it, without what has no effect here: how masks are stored, weights of slerp."""
    from mergekit.config import MergeConfiguration

    held = MergeConfiguration.model_validate(document).model_dump(mode="json", exclude_none=True)
    held.get("parameters", {}).pop("int8_mask", None)
    if held["merge_method"] == "slerp":
        held.pop("parameters", None)
        for part in held["slices"]:
            part["parameters"]["t"] = pytest.approx(part["parameters"]["t"], rel=1e-12)
            for source in part["sources"]:
                source.pop("parameters", None)
    return {key: value for key, value in held.items() if value != {}}


@st.composite
def genomes(draw: st.DrawFn) -> Genome:
    method = draw(st.sampled_from([name for name in SEARCHED if name != "dare_linear"]))
    slerp, differs = method == "slerp", method in ("linear", "slerp")
    models = MODELS[: draw(st.integers(2, 3))]
    return Genome(
        models, method,
        base=draw(st.sampled_from([None, "org/a"] if differs else ["org/base", "org/a"])),
        tokenizer=draw(st.sampled_from([None, "union", "org/a"])),
        granularity=draw(st.sampled_from([0, 1, 2, 4])),
        normalize=draw(st.sampled_from([None, True, False])),
        negative=draw(st.booleans()),
        filters=() if slerp else draw(st.sampled_from([(), ("mlp",), ("self_attn", "mlp")])),
        smooth=not slerp and draw(st.booleans()),
    )  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(genomes(), st.integers(0, 2**32 - 1))
def test_the_same_genes_describe_the_merge_file_of_mergekit(genome, seed):
    genes = np.random.default_rng(seed).normal(0.3, 0.6, genome.shape(LAYERS))
    document = genome.document(genes, LAYERS, "bfloat16")
    expected = mergekits(genome).genotype_merge_config(genes.ravel()).model_dump(mode="json", exclude_none=True)
    assert as_mergekit_reads(document) == as_mergekit_reads(expected)
    parse(Candidate("trial", document).text)  # and the text is a merge file here
    start = mergekits(genome).initial_genotype().numpy()
    np.testing.assert_array_equal(genome.start(LAYERS).astype(np.float32), start)


def test_dare_linear_is_searched_as_dare_ties_is():
    genome = Genome(MODELS, "dare_linear", base="org/base")
    (group,) = genome.document(np.full(genome.shape(LAYERS), -2.0), LAYERS)["slices"]
    assert group["sources"][0]["parameters"] == {"weight": 2.0, "density": 1.0}
    assert group["sources"][3] == {"model": "org/base", "layer_range": [0, LAYERS]}


def test_slerp_goes_from_the_largest_gene_toward_the_second_in_each_group():
    genome = Genome(MODELS, "slerp", granularity=2)
    genes = np.array([[1.0, 3.0, 3.0 - np.log(3)], [-1.0, -800.0, 800.0]]).reshape(genome.shape(LAYERS))
    first, second = genome.document(genes, LAYERS)["slices"]
    assert [source["model"] for source in first["sources"]] == ["org/b", "org/c"]
    assert (first["base_model"], first["parameters"]["t"]) == ("org/b", pytest.approx(0.25))
    assert (second["base_model"], second["parameters"]["t"]) == ("org/c", 0.0)
    assert genome.weights(genes) == {"org/a": 0.0, "org/b": pytest.approx(0.375), "org/c": pytest.approx(0.625)}


@pytest.mark.parametrize("source", [None, "union"])
def test_slerp_merges_the_weights_that_mergekit_merges(tmp_path, source):
    """mergekit gives the two models of a group weights if there is a tokenizer_source; they change nothing."""
    made = family(tmp_path / "models", ["a", "b", "c"], layers=LAYERS, vocab=len(tiny.WORDS))
    genome = Genome(tuple(map(str, made.values())), "slerp", tokenizer=source, granularity=2)
    genes = np.array([[0.2, 0.9, 0.5], [0.8, -0.3, 0.1]]).reshape(genome.shape(LAYERS))
    config = mergekits(genome).genotype_merge_config(genes).model_copy(update={"dtype": "float32"})
    mine = ours(Candidate("trial", genome.document(genes, LAYERS, "float32")).text, tmp_path / "ours")
    assert_close(mine, theirs(config.to_yaml(), tmp_path / "theirs"))


def test_a_start_is_equal_weights_or_drawn_again_by_the_same_seed():
    genome = Genome(MODELS, "ties", base="org/base", filters=("mlp",))
    start = genome.start(LAYERS)
    assert start[0, :, :, 0].tolist() == [[1 / 3] * 2] * 3
    assert genome.weights(start) == dict.fromkeys(MODELS, pytest.approx(1 / 3))
    drawn = genome.start(LAYERS, 3)
    assert (drawn == genome.start(LAYERS, 3)).all()
    assert not (drawn == genome.start(LAYERS, 4)).any()
    assert ((drawn >= 0) & (drawn < 1)).all()
