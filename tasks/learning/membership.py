"""Does a model still know records: membership tests on scores, as monitors. None of them shows that a record is gone.

Shapes: N records, M others, C classes. All scores are high where a record looks like one that was trained on.
Published sources: RMIA (arXiv 2312.03262), MUSE's PrivLeak (arXiv 2407.06460), exposure (arXiv 1802.08232).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from scipy.stats import ks_2samp, rankdata
from torch import Tensor
from torch.nn import functional

SHARPNESS = 8.0
"""Head scores are regressions on one-hot targets; this many of them to a unit of log odds."""

RMIA_OFFLINE = 0.3
"""How much less likely a record is under a model that never saw it: `a` of RMIA's offline form."""


NOISE = 3.0
"""How many times further than two clean runs are apart a third may be from one of them."""


@dataclass(frozen=True, slots=True)
class Membership:
    """How well a score tells forgotten records from ones that were never seen; 0.5 is chance."""

    auc: float
    half_width: float
    """95 % of clean models lie within chance ± this, with so many records."""
    forgotten: int
    unseen: int

    @property
    def z(self) -> float:
        """Standard deviations above chance."""
        return (self.auc - 0.5) / (self.half_width / 1.96) if self.half_width else 0.0


def log_likelihood(scores_NC: Tensor, labels: Sequence[str], names: Sequence[str]) -> Tensor:
    """(N,) log probability of each record's own label; the lowest possible for a label the model does not know."""
    logged_NC = functional.log_softmax(SHARPNESS * scores_NC.double(), 1)
    floor = float(logged_NC.min()) if len(labels) else 0.0
    places = [names.index(label) if label in names else -1 for label in labels]
    return torch.tensor([float(row[p]) if p >= 0 else floor for row, p in zip(logged_NC, places, strict=True)])


def rmia_scores(model_N: Tensor, reference_N: Tensor, population_M: Tensor, reference_M: Tensor) -> Tensor:
    """(N,) share of a population that each record beats in likelihood ratio, one reference model that never saw it.

    Arguments are log likelihoods under the model and under the reference: here the frozen backbone's own head.
    """
    ratio_N, ratio_M = rmia_ratios(model_N, reference_N), rmia_ratios(population_M, reference_M)
    return (ratio_N[:, None] > ratio_M[None, :]).double().mean(1)


def rmia_ratios(model_N: Tensor, reference_N: Tensor) -> Tensor:
    """(N,) log of how much likelier each record is under the model than under models in general. RMIA's score grows
    with it whatever the population, so that the area under the curve of either is the same."""
    return model_N.double() - _marginal(reference_N)


def _marginal(reference: Tensor) -> Tensor:
    """Log of the mean over models that saw the record and models that did not."""
    out = reference.double().exp()
    return torch.log((1 + RMIA_OFFLINE) / 2 * out + (1 - RMIA_OFFLINE) / 2)


def compare_members(forgotten_N: Tensor, unseen_M: Tensor) -> Membership:
    """The area under the curve, ties counted half, and what chance alone would leave."""
    n, m = len(forgotten_N), len(unseen_M)
    if not n or not m:
        return Membership(0.5, 0.5, n, m)
    ranks = rankdata(torch.cat([forgotten_N, unseen_M]).numpy())
    auc = (ranks[:n].sum() - n * (n + 1) / 2) / (n * m)
    return Membership(float(auc), 1.96 * math.sqrt((n + m + 1) / (12 * n * m)), n, m)


def pool(found: Sequence[Membership]) -> Membership:
    """Tickets together, each weighted by its forgotten records. They may share their strangers, whose part of chance is
    therefore added up and not averaged away."""
    total = sum(each.forgotten for each in found)
    counted = [each for each in found if each.forgotten and each.unseen]
    if not counted:
        return Membership(0.5, 0.5, total, 0)
    weights = [each.forgotten / sum(one.forgotten for one in counted) for each in counted]
    own = sum(w**2 * (e.unseen + 1) / (12 * e.forgotten * e.unseen) for w, e in zip(weights, counted, strict=True))
    shared = sum(w / math.sqrt(12 * e.unseen) for w, e in zip(weights, counted, strict=True)) ** 2
    auc = sum(w * e.auc for w, e in zip(weights, counted, strict=True))
    return Membership(auc, 1.96 * math.sqrt(own + shared), total, min(e.unseen for e in counted))


def privacy_leak(auc: float, retrained_auc: float) -> float:
    """MUSE's PrivLeak in percent: 0 is ideal, below it the records are still known, above it they stand out as unknown.

    MUSE's areas are those of non-members: one minus ours.
    """
    return 100 * ((1 - auc) - (1 - retrained_auc)) / max(1 - retrained_auc, 1e-9)


def same_distribution(left: Tensor, right: Tensor) -> float:
    """p-value of the two-sample Kolmogorov-Smirnov test; uniform where both come from one distribution."""
    return float(ks_2samp(left.numpy(), right.numpy()).pvalue)


def holm(p_values: Mapping[str, float], level: float = 0.01) -> list[str]:
    """Names that are rejected with the family-wise error held at `level` over all of them (Holm 1979)."""
    rejected: list[str] = []
    ordered = sorted(p_values, key=lambda name: (p_values[name], name))
    for place, name in enumerate(ordered):
        if p_values[name] > level / (len(ordered) - place):
            break
        rejected.append(name)
    return rejected


def exposure(canary: float, alternatives: Sequence[float]) -> float:
    """Bits by which a canary stands out from others that could have been planted; about 1.44 on average by chance."""
    rank = 1 + sum(other >= canary for other in alternatives)
    return math.log2(len(alternatives) + 1) - math.log2(rank)


def residue(
    candidate: Mapping[str, Tensor], removed: Mapping[str, Tensor], clean: Sequence[Mapping[str, Tensor]]
) -> float:
    """z-score of what a removed adapter left in a candidate's weights, beyond what clean ones share with it.

    `clean` are adapters that never met it: trained on the same shard under other seeds, they share its signal too.
    """
    target = _flat(removed)
    found = _correlation(_flat(candidate), target)
    shared = [_correlation(_flat(each), target) for each in clean]
    mean = sum(shared) / len(shared) if shared else 0.0
    spread = sum((each - mean) ** 2 for each in shared) / max(len(shared) - 1, 1)
    return (found - mean) / math.sqrt(spread + (1 + 1 / max(len(shared), 1)) / len(target))


def trace_left(
    candidate: Mapping[str, Tensor], removed: Mapping[str, Tensor], clean: Mapping[str, Tensor]
) -> tuple[float, float] | None:
    """How much of what the records had moved is still in a candidate: (share, z-score); (0, 0) for the clean weights
    themselves, share 1 for the removed ones. None where shapes differ, or the records had moved nothing.

    `clean` are weights that the same recipe makes without the records: what both have in common says nothing, so it is
    taken off both sides. A parent left in a merge at weight w shows as a share of w.
    """
    shapes = [{name: tensor.shape for name, tensor in each.items()} for each in (candidate, removed, clean)]
    if shapes[0] != shapes[1] or shapes[1] != shapes[2]:
        return None
    base = _flat(clean)
    moved, found = _flat(removed) - base, _flat(candidate) - base
    if not bool(moved.any()):
        return None
    share = float(found @ moved / (moved @ moved))
    length = float(found.norm() * moved.norm())
    return share, float(found @ moved) / length * math.sqrt(len(base)) if length else 0.0


def is_near(candidate: Mapping[str, Tensor], clean: Mapping[str, Tensor], again: Mapping[str, Tensor]) -> bool:
    """Whether a candidate is no further from a clean run than three times what two clean runs are apart."""
    if candidate.keys() != clean.keys():
        return False
    for name, tensor in clean.items():
        other = candidate[name]
        if other.shape != tensor.shape or (not tensor.is_floating_point() and not torch.equal(other, tensor)):
            return False
    base = _flat(clean)
    return bool((_flat(candidate) - base).norm() <= NOISE * (_flat(again) - base).norm())


def leaning(
    candidate: Mapping[str, Tensor],
    removed: Mapping[str, Tensor],
    clean: Mapping[str, Tensor],
    again: Mapping[str, Tensor],
) -> float:
    """z-score of how much a candidate leans from one clean run towards where the removed weights lay from another."""
    return _correlation(_flat(candidate) - _flat(clean), _flat(removed) - _flat(again)) * math.sqrt(len(_flat(clean)))


def _flat(weights: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([weights[name].double().flatten() for name in sorted(weights)])


def _correlation(left: Tensor, right: Tensor) -> float:
    left, right = left - left.mean(), right - right.mean()
    return float(left @ right / (left.norm() * right.norm()).clamp_min(1e-30))
