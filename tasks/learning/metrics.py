"""Continual-learning figures from an accuracy matrix.

Row i holds the accuracy after batch i on the test rows of batches 0, 1, ...; published definitions: Lopez-Paz and
Ranzato, GEM (2017), and Chaudhry et al. (2018) for forgetting.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ContinualMetrics:
    """Fractions. `average` is the mean over i of the accuracy after batch i on everything seen until then."""

    average: float
    last: float
    forgetting: float
    backward_transfer: float
    forward_transfer: float | None = None


def continual_metrics(
    matrix: Sequence[Sequence[float]], weights: Sequence[float] | None = None, chance: Sequence[float] | None = None
) -> ContinualMetrics:
    """Metrics of a lower-triangular matrix, or of a full one where rows go beyond the diagonal.

    `weights` are the test rows of each batch (equal where absent); `chance` is the accuracy of an untrained model per
    batch (zero where absent), which forward transfer is measured from.
    """
    count = len(matrix)
    if count == 0 or any(len(row) <= i for i, row in enumerate(matrix)):
        raise ValueError("an accuracy matrix needs a row per batch that reaches the diagonal")
    sizes = list(weights) if weights is not None else [1.0] * count
    seen = [_mean(row[: i + 1], sizes) for i, row in enumerate(matrix)]
    earlier = range(count - 1)
    best = [max(matrix[i][j] for i in range(j, count - 1)) for j in earlier]
    forgetting = [best[j] - matrix[-1][j] for j in earlier]
    backward = [matrix[-1][j] - matrix[j][j] for j in earlier]
    base = list(chance) if chance is not None else [0.0] * count
    ahead = [matrix[j - 1][j] - base[j] for j in range(1, count) if len(matrix[j - 1]) > j]
    return ContinualMetrics(
        average=sum(seen) / count,
        last=seen[-1],
        forgetting=sum(forgetting) / len(forgetting) if forgetting else 0.0,
        backward_transfer=sum(backward) / len(backward) if backward else 0.0,
        forward_transfer=sum(ahead) / len(ahead) if ahead and len(ahead) == count - 1 else None,
    )


def _mean(values: Sequence[float], weights: Sequence[float]) -> float:
    used = weights[: len(values)]
    return sum(v * w for v, w in zip(values, used, strict=True)) / sum(used)
