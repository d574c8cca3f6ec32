"""MOS: an adapter per batch merged with its predecessors while it trains, and self-refined retrieval.

Shapes: N records, B rows, D width, F features, C classes, A adapters, P prototypes. Published source: MOS (arXiv
2412.09441). The official code merges once per layer and forward pass, at evaluation too; here a merge happens once per
step, as published, and evaluating changes nothing. There a class comes in one batch; here one that returns has a
prototype, a Gaussian and an adapter of every batch that brought it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from kernels.ema import ema
from tasks.learning.adapters import AdapterSpec, AdapterWeights, deltas_of, new_adapter
from tasks.learning.backbones import Backbone
from tasks.learning.features import features, late_view, num_states, training_features
from tasks.learning.heads import ClassStatistics, Head, class_statistics, head_scores, solve_head
from tasks.learning.loops import Descent, descend
from tasks.learning.tensors import require_finite

SCALE = 0.1  # of the adapter's output, as published; folded into the stored up-projection
HOPS = 4
SHARPNESS = 20.0  # turns regression scores between 0 and 1 into logits that the prototype branch does not drown


@dataclass(frozen=True, slots=True)
class MosOptions:
    """`merge` 0 leaves every adapter independent of earlier shards, and so does `warm_start` False."""

    descent: Descent = field(default_factory=lambda: Descent(epochs=4, learning_rate=0.05, minibatch=16))
    merge: float = 0.1
    warm_start: bool = True
    orthogonality: float = 0.1
    alignment: str = "closed-form"  # or "sgd", as published
    ensemble: bool = True


@dataclass(frozen=True)
class Moments:
    """A class's mean (F,), and a factor (K, F) of its scatter: factor' factor sums the squares of the centred rows.

    Fewer rows than features are their own factor, which is exact and far smaller than a covariance; more are reduced to
    a triangle of F rows.
    """

    mean_F: Tensor
    factor_KF: Tensor
    count: int

    def draw(self, number: int, generator: torch.Generator) -> Tensor:
        """(number, F) from the Gaussian of this mean and unbiased covariance, plus 1e-4 I as published."""
        noise_BF = 1e-2 * torch.randn(number, len(self.mean_F), generator=generator)
        mixed_BF = torch.randn(number, len(self.factor_KF), generator=generator) @ self.factor_KF
        return self.mean_F + mixed_BF / max(self.count - 1, 1) ** 0.5 + noise_BF


def moments_of(rows_NF: Tensor) -> Moments:
    mean_F = rows_NF.mean(0)
    centred_NF = rows_NF - mean_F
    few = len(rows_NF) <= rows_NF.shape[1]
    return Moments(mean_F, centred_NF if few else torch.linalg.qr(centred_NF, mode="r").R, len(rows_NF))


@dataclass
class Mos:
    """Adapters in order of arrival, and per batch the statistics of its classes."""

    cut: int
    spec: AdapterSpec
    options: MosOptions = field(default_factory=MosOptions)
    adapters: list[AdapterWeights] = field(default_factory=list)
    statistics: list[ClassStatistics] = field(default_factory=list)  # of each batch under its own adapter
    moments: list[dict[str, Moments]] = field(default_factory=list)  # by class
    prototypes: dict[tuple[str, int], Tensor] = field(default_factory=dict)  # of class and batch, under adapter 0
    head: dict[str, tuple[Tensor, Tensor]] = field(
        default_factory=dict
    )  # class -> weight, bias as its last batch trained it


@dataclass(frozen=True)
class MosAnswer:
    labels: list[str]
    scores_NC: Tensor
    visits: list[tuple[int, ...]]  # the adapters each record was run under


def learn_batch(mos: Mos, backbone: Backbone, states: Sequence[Tensor], labels: Sequence[str], seed: int) -> None:
    """Train and merge an adapter on a batch, then take its class statistics and prototypes."""
    adapter = _train(mos, backbone, states, labels, seed)
    mos.adapters.append(adapter)
    own_NF = features(backbone, states, mos.cut, adapter)
    first_NF = own_NF if len(mos.adapters) == 1 else features(backbone, states, mos.cut, mos.adapters[0])
    mos.statistics.append(class_statistics(own_NF, labels))
    moments = {}
    for name in sorted(set(labels)):
        rows = [i for i, label in enumerate(labels) if label == name]
        moments[name] = moments_of(late_view(own_NF[rows]))
        mos.prototypes[name, len(mos.adapters) - 1] = late_view(first_NF[rows]).mean(0)
    mos.moments.append(moments)


def _train(mos: Mos, backbone: Backbone, states: Sequence[Tensor], labels: Sequence[str], seed: int) -> AdapterWeights:
    options, names = mos.options, sorted(set(labels))
    targets_N = torch.tensor([names.index(label) for label in labels])
    warm = options.warm_start and mos.adapters
    start = mos.adapters[-1] if warm else new_adapter(backbone, mos.spec, seed)
    # the published scale of 0.1 slows learning down as it should only where it stays outside of the trained tensors
    weights = {n: (t / SCALE if ".up." in n else t.clone()).requires_grad_() for n, t in start.items()}
    earlier = {n: torch.stack([a[n] for a in mos.adapters]).mean(0) for n in start} if mos.adapters else None
    head = [torch.zeros(len(names), backbone.width * num_states(mos.spec.last_layers)), torch.zeros(len(names))]
    head = [tensor.requires_grad_() for tensor in head]
    means = [each.mean_F for moments in mos.moments for each in moments.values()]

    def loss_of(rows: list[int]) -> Tensor:
        chosen, deltas = [states[i] for i in rows], deltas_of(fold_scale(weights))
        features_BF = late_view(training_features(backbone, chosen, mos.cut, deltas))
        loss = functional.cross_entropy(functional.linear(features_BF, *head), targets_N[rows])
        return loss + options.orthogonality * instance_loss(features_BF, means)

    def merge() -> None:
        if earlier is not None and options.merge:
            with torch.no_grad():
                means_outside = [t / SCALE if ".up." in n else t for n, t in earlier.items()]
                ema(list(weights.values()), means_outside, options.merge)

    descend([(list(weights.values()), 1.0), (head, 0.1)], loss_of, len(states), options.descent, seed, merge)
    mos.head.update({name: (head[0][i].detach(), head[1][i].detach()) for i, name in enumerate(names)})
    return {name: tensor.detach() for name, tensor in fold_scale(weights).items()}


def fold_scale(weights: AdapterWeights) -> AdapterWeights:
    """The same function without the scale outside."""
    return {name: tensor * SCALE if ".up." in name else tensor for name, tensor in weights.items()}


def instance_loss(features_BF: Tensor, means: Sequence[Tensor]) -> Tensor:
    """Every class mean and every row should be most like itself: what the official code calls orthogonality."""
    rows_MF = torch.cat([torch.stack(list(means)), features_BF]) if means else features_BF
    return functional.cross_entropy(rows_MF @ rows_MF.mT / 0.8, torch.arange(len(rows_MF)))


def solve_mos_head(mos: Mos, seed: int = 0) -> Head:
    """The head over all classes: ridge from the statistics, or SGD on Gaussian draws as published."""
    closed = solve_head(mos.statistics)
    if mos.options.alignment == "sgd":
        return _align(mos, closed.labels, seed)
    return Head(closed.labels, SHARPNESS * closed.weight_CE, SHARPNESS * closed.bias_C)


def _align(mos: Mos, labels: tuple[str, ...], seed: int, epochs: int = 30, per_class: int = 80) -> Head:
    """The published alignment of the trained head: fresh Gaussian draws of every class in each epoch, cross-entropy
    over all classes; one optimiser throughout, whose rate falls along one cosine, by epoch. One batch needs none."""
    weight_CF, bias_C = (torch.stack([mos.head[name][i] for name in labels]).requires_grad_() for i in (0, 1))
    if len(mos.adapters) > 1:
        optimizer = torch.optim.SGD([weight_CF, bias_C], 0.005, 0.9, weight_decay=mos.options.descent.weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
        generator = torch.Generator().manual_seed(seed)
        for _ in range(epochs):
            _align_once(mos, labels, weight_CF, bias_C, optimizer, per_class, generator)
            schedule.step()
    weight_CF, bias_C = weight_CF.detach(), bias_C.detach()
    expanded_CE = torch.zeros(len(labels), mos.statistics[0].sums_CE.shape[1])
    expanded_CE[:, : weight_CF.shape[1]] = weight_CF
    return Head(labels, expanded_CE, bias_C)


def _align_once(
    mos: Mos,
    labels: tuple[str, ...],
    weight_CF: Tensor,
    bias_C: Tensor,
    optimizer: torch.optim.Optimizer,
    per_class: int,
    generator: torch.Generator,
) -> None:
    gaussians = [(c, batch[name]) for c, name in enumerate(labels) for batch in mos.moments if name in batch]
    drawn_NF = torch.cat([each.draw(per_class, generator) for _, each in gaussians])
    targets_N = torch.tensor([c for c, _ in gaussians]).repeat_interleave(per_class)
    for rows_B in torch.randperm(len(drawn_NF), generator=generator).split(per_class):
        logits_BC = functional.linear(drawn_NF[rows_B], weight_CF, bias_C)
        loss = require_finite("alignment loss", functional.cross_entropy(logits_BC, targets_N[rows_B]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def answer(mos: Mos, head: Head, backbone: Backbone, states: Sequence[Tensor]) -> MosAnswer:
    """Self-refined retrieval: start at the nearest prototype's adapter, follow the head's own answer to its adapter,
    at most four times; then add the prototype branch. An adapter runs only on the records that visit it."""
    first_NF = features(backbone, states, mos.cut, mos.adapters[0])
    places = sorted(mos.prototypes)
    class_P = torch.tensor([head.labels.index(name) for name, _ in places])
    batch_P = torch.tensor([batch for _, batch in places])
    cosine_NP = _cosines(torch.stack([mos.prototypes[place] for place in places]), late_view(first_NF))
    scores_ANC = torch.zeros(len(mos.adapters), len(states), len(head.labels))
    visited_AN = torch.zeros(scores_ANC.shape[:2], dtype=torch.bool)
    scores_ANC[0], visited_AN[0] = head_scores(head, first_NF), True
    at_N, scores_NC = batch_P[cosine_NP.argmax(1)], scores_ANC[0]
    for _ in range(HOPS):
        for adapter in at_N.unique().tolist():
            missing = ((at_N == adapter) & ~visited_AN[adapter]).nonzero().flatten().tolist()
            if missing:
                rows_NF = features(backbone, [states[i] for i in missing], mos.cut, mos.adapters[adapter])
                scores_ANC[adapter, missing], visited_AN[adapter, missing] = head_scores(head, rows_NF), True
        scores_NC = scores_ANC[at_N, torch.arange(len(states))]
        answered_NP = class_P == scores_NC.argmax(1, keepdim=True)  # of the class's batches, the nearest one's adapter
        following_N = batch_P[cosine_NP.masked_fill(~answered_NP, -torch.inf).argmax(1)]
        if torch.equal(following_N, at_N):
            break
        at_N = following_N
    if mos.options.ensemble:
        cosine_NC = scores_NC.new_full(scores_NC.shape, -torch.inf)
        cosine_NC.scatter_reduce_(1, class_P.expand_as(cosine_NP), cosine_NP, "amax")
        scores_NC = scores_NC.softmax(1) + (len(mos.adapters) * cosine_NC).softmax(1)
    visits = [tuple(visited_A.nonzero().flatten().tolist()) for visited_A in visited_AN.mT]
    return MosAnswer([head.labels[i] for i in scores_NC.argmax(1).tolist()], scores_NC, visits)


def _cosines(prototypes_PF: Tensor, first_NF: Tensor) -> Tensor:
    """(N, P): to the prototypes, all centred, since a large common mean would make every cosine alike."""
    centre_F = prototypes_PF.mean(0)
    return functional.normalize(first_NF - centre_F, dim=1) @ functional.normalize(prototypes_PF - centre_F, dim=1).mT
