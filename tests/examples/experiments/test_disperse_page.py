"""The page of Disperse-then-Merge shows what was measured: means and 95 % intervals, differences paired by seed."""

import pytest
from evidence_pages import written

from examples.experiments.disperse import page
from weightops.errors import WeightopsError


def line(seed, name, task, rest=2.0, norm=1.0, **more):
    return {
        "seed": seed,
        "name": name,
        "norm": norm,
        "losses": {"task": task, **dict.fromkeys(page.REST, rest)},
        **more,
    }


SETS = [
    {"name": "train", "rows": 1200, "answer tokens": [9000, 8000]},
    {"name": "GSM8K", "rows": 9, "answer tokens": [7]},
]
RESULTS = page.Results(
    [
        line(0, "base", 2.0, norm=0.0),
        *(line(seed, "single", task) for seed, task in enumerate((1.0, 2.0, 3.0))),
        *(line(seed, "single stopped", task) for seed, task in enumerate((1.5, 2.5, 3.5))),
        *(line(seed, "random part", 1.5) for seed in range(3)),
        *(line(seed, "path 0.5", 1.8, norm=0.5) for seed in range(3)),
        *(line(seed, "random average", task, norm=0.25) for seed, task in enumerate((1.1, 2.1, 3.1))),
        *(line(seed, "kmeans average", task, norm=2.0) for seed, task in ((1, 2.0), (2, 4.0))),
    ],
    SETS,
)


def test_an_interval_is_the_mean_and_students_t():
    """By hand: the deviation of 1, 2, 3 is 1, and t(0.975, 2 degrees of freedom) = 4.3027, over the root of 3 seeds."""
    single = RESULTS.of("single", page.task)
    assert single.mean == 2
    assert single.half_width == pytest.approx(4.3027 / 3**0.5, abs=1e-4)


def test_differences_are_paired_by_seed():
    difference = RESULTS.of("kmeans average", page.task) - RESULTS.of("single", page.task)
    assert difference.values == {1: 0.0, 2: 1.0}
    assert (RESULTS.of("single", page.task) - RESULTS.of("base", page.task)).values == {0: -1.0, 1: 0.0, 2: 1.0}


def test_the_control_of_shrinkage_lies_between_the_scales_that_were_measured():
    """The base has 2.0 at norm 0 and the path 1.8 at 0.5, so 1.9 at 0.25; nothing is known beyond the whole change."""
    assert page.shrunk(RESULTS, "random average", page.task).values == pytest.approx({0: 1.9, 1: 1.9, 2: 1.9})
    assert page.shrunk(RESULTS, "kmeans average", page.task).values == {}


def test_tables_and_the_picture_take_the_place_of_the_earlier_ones(tmp_path):
    once = written(page.PAGE, RESULTS, tmp_path)
    assert "| 1,200 | 8,000 to 9,000 |" in once
    assert "| base | 1 | 0.00 | 2.000 | 2.000 |" in once
    assert "| single SFT | 3 | 1.00 ± 0.00 | 2.000 ± 2.484 |" in once
    assert "| DTM, random parts, average | **+0.100 ± 0.000** | +0.000 ± 0.000 |" in once  # the interval leaves 0 out
    assert "| DTM, random parts, average | **-0.400 ± 0.000** | +0.000 ± 0.000 | +0.600 ± 2.484 |" in once
    assert "| DTM, random parts, average | 0.25 ± 0.00 | +0.200 ± 2.484 | +0.000 ± 0.000 |" in once
    assert (tmp_path / "disperse-then-merge.png").read_bytes().startswith(b"\x89PNG")


def test_results_without_a_run_are_refused():
    with pytest.raises(WeightopsError, match="nothing was measured of 'single'; run the experiment again"):
        page.tables(page.Results([line(0, "base", 1.0), line(0, "random average", 1.0)]))
