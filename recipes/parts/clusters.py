"""k-means over units, by scikit-learn, and clusters of equal size."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from weightops.errors import WeightopsError
from weightops.extras import needed
from weightops.recipes.parts.dispersion import Pool, Unit

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_ROUNDS = 20


def clustered(pool: Pool, count: int, balanced: bool = False) -> list[int]:
    """The cluster of each unit; 0 is the largest cluster (of equal ones that of the earlier row).

    A unit is the mean of its rows' embeddings, of length 1 again, and weighs as many rows as it has. Lloyd's algorithm
    with k-means++ starts, the best of ten.

    Args:
        pool: With embeddings.
        count: How many clusters.
        balanced: See :func:`equal_sizes`.

    Raises:
        WeightopsError: fewer different texts than clusters, or scikit-learn is not installed.
    """
    import numpy as np

    assert pool.vectors is not None
    points = unit_vectors(pool.vectors, pool.units)
    weights = np.array([len(unit) for unit in pool.units], np.float64)
    different = len(np.unique(points.round(6), axis=0))
    if different < count:
        raise WeightopsError(f"{different} different embeddings for {count} clusters; ask for at most {different}")
    cluster = needed("sklearn.cluster", "scikit-learn", "train")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of convergence: empty clusters are looked for below
        fitted = cluster.KMeans(count, n_init=10, random_state=pool.seed % 2**32).fit(points, sample_weight=weights)
    labels = np.asarray(fitted.labels_)
    if balanced:
        labels = equal_sizes(points, weights, np.asarray(fitted.cluster_centers_))
    return _by_size(labels.tolist(), pool.units)


def unit_vectors(vectors: NDArray[np.float32], units: Sequence[Unit]) -> NDArray[np.float64]:
    """The mean embedding of each unit, of length 1, [units, width]."""
    import numpy as np

    means = np.stack([vectors[list(unit)].mean(0, dtype=np.float64) for unit in units])
    vectors_of_units: NDArray[np.float64] = means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
    return vectors_of_units


def equal_sizes(
    points: NDArray[np.float64], weights: NDArray[np.float64], centres: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Clusters whose sizes differ by at most one row, where single rows are enough to fill them up (ours).

    From the centres of plain k-means: points go to the nearest centre that has room, larger units first, then those
    that would lose most by going to their second choice. Then points of equal weight change places between two clusters
    while that brings them nearer to their centres in sum. Centres move to the means, and all is done again, until
    nothing changes or 20 times.

    Args:
        points: [points, width].
        weights: Rows of each point.
        centres: [clusters, width].
    """
    import numpy as np

    labels = np.full(len(points), -1)
    for _ in range(_ROUNDS):
        distances = ((points**2).sum(1)[:, None] - 2 * points @ centres.T + (centres**2).sum(1)[None]).clip(0)
        before, labels = labels, _swapped(distances, weights, _filled(distances, weights))
        if (before == labels).all():
            break
        centres = np.stack(
            [
                np.average(points[labels == each], axis=0, weights=weights[labels == each])
                for each in range(len(centres))
            ]
        )
    return labels


def _filled(distances: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.int64]:
    """Points to the nearest cluster with room."""
    import numpy as np

    count = distances.shape[1]
    least, larger = divmod(int(weights.sum()), count)
    room = np.full(count, least, np.float64)
    spare = larger  # clusters that may still have one row more
    nearest = np.sort(distances, axis=1)
    regret = nearest[:, 1] - nearest[:, 0] if count > 1 else nearest[:, 0]
    labels = np.zeros(len(distances), np.int64)
    empty = set(range(count))
    for place, point in enumerate(np.lexsort((-regret, -weights))):
        fits = [each for each in range(count) if room[each] + (spare > 0 and room[each] >= 0) >= weights[point]]
        if len(distances) - place <= len(empty):  # as many points are left as clusters have none
            fits = sorted(empty)
        chosen = min(fits, key=lambda each: distances[point, each]) if fits else int(room.argmax())
        empty.discard(chosen)
        room[chosen] -= weights[point]
        spare -= room[chosen] == -1
        labels[point] = chosen
    return labels


def _swapped(
    distances: NDArray[np.float64], weights: NDArray[np.float64], labels: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Points of equal weight in two clusters change places while that shortens the distances in sum."""
    import numpy as np

    count = distances.shape[1]
    for _ in range(_ROUNDS):
        changed = False
        for one in range(count):
            for other in range(one + 1, count):
                for weight in np.unique(weights):
                    ours = np.flatnonzero((labels == one) & (weights == weight))
                    theirs = np.flatnonzero((labels == other) & (weights == weight))
                    gain = distances[ours, one] - distances[ours, other]
                    back = distances[theirs, other] - distances[theirs, one]
                    ours, theirs = ours[np.argsort(-gain, kind="stable")], theirs[np.argsort(-back, kind="stable")]
                    pairs = min(len(ours), len(theirs))
                    better = np.sort(gain)[::-1][:pairs] + np.sort(back)[::-1][:pairs] > 1e-9
                    labels[ours[:pairs][better]], labels[theirs[:pairs][better]] = other, one
                    changed |= bool(better.any())
        if not changed:
            break
    return labels


def _by_size(labels: Sequence[int], units: Sequence[Unit]) -> list[int]:
    sizes: dict[int, int] = {}
    first: dict[int, int] = {}
    for label, unit in zip(labels, units, strict=True):
        sizes[label] = sizes.get(label, 0) + len(unit)
        first.setdefault(label, unit[0])
    order = sorted(sizes, key=lambda label: (-sizes[label], first[label]))
    return [order.index(label) for label in labels]
