"""The page of sorted sub-models shows what was measured: means with their range, only at exits that a model has."""

from evidence_pages import written

from examples.experiments.sorted import page


def line(seed, name, *losses, learned=100):
    exits = dict(zip(("6", "12", "18"), losses, strict=False))
    return {"seed": seed, "name": name, "learned": learned, "held_out": 50, "losses": exits}


LINES = [
    line(0, "base", 9.0, 8.0, 2.0, learned=0),
    *(line(seed, "plain", 9.5, 8.0, 1.0 + seed, learned=100 + seed) for seed in range(2)),
    line(0, "cut", 7.0, 3.0),
]


def test_the_table_and_the_picture_take_the_place_of_the_earlier_ones(tmp_path):
    once = written(page.PAGE, LINES, tmp_path)
    assert once.endswith("\nmore\n")
    assert "| model | seeds | tokens learned | exit 6 | exit 12 | exit 18 |" in once
    assert "| before training | 1 | 0 | 9.000 | 8.000 | 2.000 |" in once
    assert "| plain fine-tuning | 2 | 100 to 101 | 9.500 (9.500 to 9.500) |" in once
    assert "| 1.500 (1.000 to 2.000) |" in once
    assert "| first 18 layers, cut, then fine-tuned | 1 | 100 | 7.000 | 3.000 |  |" in once
    assert (tmp_path / "sorted-losses.png").read_bytes().startswith(b"\x89PNG")
