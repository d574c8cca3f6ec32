"""The exact head: ridge regression and a discriminant, solved from class statistics that add up over shards.

Features are two views side by side, late and early blocks. Each has a ridge of its own, and the head is their mean: as
good as one ridge over both, for a quarter of the products (docs/decisions/0101). The regression scores a class by its
share of the rows as well; the discriminant, Gaussians of one covariance, does not (docs/decisions/0107).

Shapes: N records, F features, V = 2 views, W = F / V + random features of a view, E = V W, C classes. Published source
of the random features: RanPAC (arXiv 2307.02251); of a discriminant solved from a ridge: Hastie, Buja and Tibshirani,
Penalized discriminant analysis (Annals of Statistics 23, 1995). Sums are taken in the order of the statistics' digests,
so the head's bytes do not depend on the order in which shards arrived.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor
from torch.nn.functional import pad

from tasks.learning.tensors import digest_of, require_finite, tensor_to_labels, text_to_tensor

VIEWS = 2
RANDOM_FEATURES = 512  # of each view
ROWS = 16  # of every scoring product
SUMMED = 1024  # rows kept as rows, of however many shards, in a product of second moments
ROUNDING = 1e-9
PRIOR_ROWS = 256
"""The ridge's penalty: a prior that weighs as much as so many rows of average variance, whatever the number of rows.
Chosen on training rows (docs/decisions/0101)."""
CAUTION = 4.0
"""What the discriminant's log odds are divided by: new rows scatter more than those it was solved from, and its two
views are not independent. Chosen on training rows (docs/decisions/0107)."""


@dataclass(frozen=True)
class ClassStatistics:
    """What a shard contributes to a head: counts and sums per class, and its second moments.

    Second moments are the Gram matrix of each view (V, W, W) in float64, or, where the shard has fewer rows than W, its
    rows, which determine the same matrices exactly and cost less.
    """

    labels: tuple[str, ...]
    counts_C: Tensor
    sums_CE: Tensor
    gram_VWW: Tensor | None = None
    rows_NF: Tensor | None = None

    def to_tensors(self) -> dict[str, Tensor]:
        moments = {"gram_VWW": self.gram_VWW, "rows_NF": self.rows_NF}
        kept = {name: tensor.contiguous() for name, tensor in moments.items() if tensor is not None}
        return {"labels": text_to_tensor(self.labels), "counts_C": self.counts_C, "sums_CE": self.sums_CE, **kept}

    @cached_property
    def digest(self) -> str:
        return digest_of(self.to_tensors())

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "ClassStatistics":
        moments = (tensors.get("gram_VWW"), tensors.get("rows_NF"))
        return cls(tensor_to_labels(tensors["labels"]), tensors["counts_C"], tensors["sums_CE"], *moments)


@dataclass(frozen=True)
class Head:
    """For expanded features x, the mean of a regression x W^T + b and of a posterior softmax(x D^T + d).

    A head without a discriminant D, d is its regression.
    """

    labels: tuple[str, ...]
    weight_CE: Tensor
    bias_C: Tensor
    discriminant_CE: Tensor | None = None
    offset_C: Tensor | None = None


def expand(features_NF: Tensor) -> Tensor:
    """(N, E): each view's features and fixed random ReLU features of them, the same for every shard and stream."""
    if RANDOM_FEATURES == 0:
        return features_NF
    views = features_NF.chunk(VIEWS, 1)
    both = [(view_NF, (view_NF @ _projection(view_NF.shape[1])).relu()) for view_NF in views]
    return torch.cat([part for view in both for part in view], 1)


@lru_cache(maxsize=4)
def _projection(width: int) -> Tensor:
    generator = torch.Generator().manual_seed(width)
    return torch.randn(width, RANDOM_FEATURES, generator=generator) / width**0.5


def class_statistics(features_NF: Tensor, labels: Sequence[str]) -> ClassStatistics:
    """The statistics of one shard, rows in the caller's canonical order. Raises NonFiniteError."""
    require_finite("class statistics", features_NF)
    names = tuple(sorted(set(labels)))
    rows_NE = expand(features_NF).double()
    members_CN = torch.tensor([[label == name for label in labels] for name in names], dtype=torch.float64)
    members_CN = members_CN.reshape(len(names), len(labels))  # also where no row has a label
    sums_CE, counts_C = members_CN @ rows_NE, members_CN.sum(1)
    if len(labels) < rows_NE.shape[1] // VIEWS:
        return ClassStatistics(names, counts_C, sums_CE, rows_NF=features_NF.clone())
    return ClassStatistics(names, counts_C, sums_CE, gram_VWW=_gram_of(rows_NE))


def solve_head(statistics: Sequence[ClassStatistics], prior_rows: float = PRIOR_ROWS) -> Head:
    """The head of all shards together; labels are the sorted union.

    It is that of the rows of all shards at once: the mean of the views' ridges, with an intercept, and of their
    discriminants. The penalty is `prior_rows` times the mean variance of a view's features.
    """
    return solve_sums(add_up(statistics), prior_rows)


@dataclass(frozen=True)
class Sums:
    """What a head is solved from: counts, sums and second moments (float64), added up over shards."""

    labels: tuple[str, ...]
    counts_C: Tensor
    sums_CE: Tensor
    gram_VWW: Tensor

    def blended(self, own: "Sums", share: float) -> "Sums":
        """`share` of these sums, and the rest of what `own` of them amounts to: own rows in full, the others less."""
        places = [self.labels.index(label) for label in own.labels]
        counts_C, sums_CE = share * self.counts_C, share * self.sums_CE
        counts_C[places] += (1 - share) * own.counts_C
        sums_CE[places] += (1 - share) * own.sums_CE
        return Sums(self.labels, counts_C, sums_CE, torch.add(share * self.gram_VWW, own.gram_VWW, alpha=1 - share))


def add_up(statistics: Sequence[ClassStatistics]) -> Sums:
    """Rows of small shards are multiplied together: a product for each would cost a Gram matrix for a handful of rows.

    Raises ValueError without a shard.
    """
    if not statistics:
        raise ValueError("a head needs the statistics of at least one shard")
    ordered = sorted(statistics, key=lambda each: each.digest)
    labels = tuple(sorted({label for each in ordered for label in each.labels}))
    counts_C = torch.zeros(len(labels), dtype=torch.float64)
    sums_CE = torch.zeros(len(labels), statistics[0].sums_CE.shape[1], dtype=torch.float64)
    width = sums_CE.shape[1] // VIEWS
    gram_VWW = torch.zeros(VIEWS, width, width, dtype=torch.float64)
    for each in ordered:
        places = [labels.index(label) for label in each.labels]
        counts_C[places] += each.counts_C
        sums_CE[places] += each.sums_CE
        if each.gram_VWW is not None:
            gram_VWW += each.gram_VWW
    rows = [each.rows_NF for each in ordered if each.rows_NF is not None]
    for rows_NF in torch.cat(rows).split(SUMMED) if rows else ():
        gram_VWW += _gram_of(expand(rows_NF).double())
    return Sums(labels, counts_C, sums_CE, gram_VWW)


def solve_sums(sums: Sums, prior_rows: float = PRIOR_ROWS) -> Head:
    """The head of sums; `prior_rows` as in `solve_head`."""
    total = sums.counts_C.sum().clamp_min(1)
    mean_VW = (sums.sums_CE.sum(0) / total).unflatten(0, (VIEWS, -1))
    centred_VWW = sums.gram_VWW - total * mean_VW[:, :, None] * mean_VW[:, None]
    variances_VW = centred_VWW.diagonal(dim1=1, dim2=2)
    # rows that are all alike have no variance but what rounding leaves of their squares
    least_V = ROUNDING * sums.gram_VWW.diagonal(dim1=1, dim2=2).mean(1)
    penalty_V = (prior_rows * variances_VW.mean(1) / total).maximum(least_V.clamp_min(1e-12))
    variances_VW.add_(penalty_V[:, None])
    sums_VCW = sums.sums_CE.unflatten(1, (VIEWS, -1)).transpose(0, 1)
    right_VWC = (sums_VCW - sums.counts_C[:, None] * mean_VW[:, None]).mT
    weight_VWC = torch.cholesky_solve(right_VWC, torch.linalg.cholesky(centred_VWW))
    weight_CE = _side_by_side(weight_VWC)
    bias_C = sums.counts_C / total - weight_CE @ mean_VW.flatten()
    discriminant_CE, offset_C = _discriminant(sums.counts_C, mean_VW, right_VWC, weight_VWC)
    return Head(sums.labels, weight_CE.float(), bias_C.float(), discriminant_CE.float(), offset_C.float())


def _discriminant(counts_C: Tensor, mean_VW: Tensor, right_VWC: Tensor, weight_VWC: Tensor) -> tuple[Tensor, Tensor]:
    """(C, E), (C): log odds of Gaussians around the class means, all classes alike before a row is seen.

    Their covariance is what is left of the ridge's when the scatter of the class means is taken out, penalty included;
    so the ridge's solution gives theirs by a solve among the classes.
    """
    between_VCC = right_VWC.mT @ weight_VWC
    # view by view: with two threads MKL never returns from a batch of 150 classes, or returns other pivots
    pairs = zip(torch.diag(counts_C) - between_VCC, weight_VWC, strict=True)
    within_VWC = torch.stack([torch.linalg.solve(a_CC, b_WC, left=False) for a_CC, b_WC in pairs]) * counts_C.sum()
    norms_C = (right_VWC * within_VWC).sum(1).mean(0) / counts_C
    discriminant_CE = _side_by_side(within_VWC)
    return discriminant_CE / CAUTION, (-norms_C / 2 - discriminant_CE @ mean_VW.flatten()) / CAUTION


def _side_by_side(weight_VWC: Tensor) -> Tensor:
    """(C, E): the mean of the views; another layout has other last bits by row."""
    return (weight_VWC.flatten(0, 1).mT / VIEWS).contiguous()


def _gram_of(rows_NE: Tensor) -> Tensor:
    """(V, W, W): nothing of one view meets another."""
    return torch.stack([view_NW.mT @ view_NW for view_NW in rows_NE.chunk(VIEWS, 1)])


def head_scores(head: Head, features_NF: Tensor) -> Tensor:
    """(N, C): about one for the right class, zero for the others; the same bytes in any company."""
    return expanded_scores(head, expand_rows(features_NF))


def expand_rows(features_NF: Tensor) -> Tensor:
    """(N, E): `expand`, once for all heads that score; in products of 16 rows, so that a row's bytes are its own."""
    chunks = [expand(full_NF)[:count] for full_NF, count in _chunks(features_NF)]
    return torch.cat(chunks) if chunks else expand(features_NF)


def expanded_scores(head: Head, expanded_NE: Tensor) -> Tensor:
    """(N, C): the scores of expanded features."""
    chunks = [_scores(head, full_NE)[:count] for full_NE, count in _chunks(expanded_NE)]
    return torch.cat(chunks) if chunks else expanded_NE.new_zeros(0, len(head.labels))


def _scores(head: Head, expanded_NE: Tensor) -> Tensor:
    regression_NC = expanded_NE @ head.weight_CE.mT + head.bias_C
    if head.discriminant_CE is None or head.offset_C is None:
        return regression_NC
    return (regression_NC + torch.softmax(expanded_NE @ head.discriminant_CE.mT + head.offset_C, 1)) / 2


def _chunks(rows_NF: Tensor) -> Iterator[tuple[Tensor, int]]:
    """16 rows at a time, the last ones filled up with zeros: a product of another shape has other last bits."""
    for chunk_NF in rows_NF.split(ROWS) if len(rows_NF) else ():
        yield pad(chunk_NF, (0, 0, 0, ROWS - len(chunk_NF))), len(chunk_NF)
