"""A picture of the parts: the first two principal components of the embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from weightops.errors import WeightopsError
from weightops.extras import needed
from weightops.recipes.parts.disperse import Dispersed

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
"""A palette that colour-blind people can tell apart too (Okabe and Ito)."""
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")
_POINTS = 20_000


def draw_parts(dispersed: Dispersed, file: Path, title: str) -> None:
    """Write the picture: a point for each row, a colour and a mark for each part; of many rows a share, drawn by place.

    Args:
        dispersed: With embeddings.
        file: Where to; its ending says the format.
        title: Above the picture.

    Raises:
        WeightopsError: matplotlib or scikit-learn is missing, or there are no embeddings.
    """
    if dispersed.vectors is None:
        raise WeightopsError("a picture needs embeddings; name an encoder")
    figures = needed("matplotlib.figure", "matplotlib", "train")
    pca = needed("sklearn.decomposition", "scikit-learn", "train").PCA(2, svd_solver="full")
    places = pca.fit_transform(dispersed.vectors)
    figure: Any = figures.Figure(figsize=(7, 5.5), layout="constrained")
    axes = figure.subplots()
    step = -(-len(places) // _POINTS)
    for number, rows in enumerate(dispersed.parts):
        shown = places[list(rows)[::step]]
        colour, mark = COLOURS[number % len(COLOURS)], MARKS[(number + number // len(COLOURS)) % len(MARKS)]
        axes.scatter(
            shown[:, 0], shown[:, 1], s=14, c=colour, marker=mark, alpha=0.6, linewidths=0,
            label=f"part {number} ({len(rows)} rows)",
        )  # fmt: skip
    shares = pca.explained_variance_ratio_
    axes.set(
        title=title,
        xlabel=f"first principal component ({shares[0]:.0%} of the variance)",
        ylabel=f"second principal component ({shares[1]:.0%})",
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8.5)
    figure.savefig(file, dpi=150, metadata={"Software": None})
