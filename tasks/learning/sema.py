"""SEMA: descriptors decide layer by layer whether a batch needs a new adapter; a router mixes all of them.

Shapes: N records, B rows, D width, F features, C classes. Published source: SEMA (arXiv 2403.18886). Three departures:
descriptors are solved in closed form and scored on held-out rows, the score is one-sided unless asked, and the head is
solved from statistics (the published head, trained on the current classes, is an option).
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from tasks.learning.adapters import AdapterSpec, AdapterWeights, new_adapter
from tasks.learning.backbones import Backbone, Delta
from tasks.learning.descriptors import Descriptor, fit_descriptor, z_scores
from tasks.learning.features import late_view, num_states, run_suffix, training_features
from tasks.learning.heads import ClassStatistics, Head, class_statistics, head_scores, solve_head
from tasks.learning.loops import Descent, descend
from tasks.learning.router import Mixture, first_mixture

DETECTION_ROWS = 128
LEAST_HELD = 2  # held-out rows that a descriptor or a scan can be based on


@dataclass(frozen=True, slots=True)
class SemaOptions:
    descent: Descent = field(default_factory=lambda: Descent(epochs=3, learning_rate=0.005, minibatch=16))
    threshold: float = 1.0
    two_sided: bool = False
    rank: int = 16
    descriptor_rank: int = 64
    watched: int = 3  # descriptors and expansion in this many of the last blocks
    published_head: bool = False
    spare_held_out: bool = False  # held-out rows train nothing: what was grown is judged on them afterwards


@dataclass
class Sema:
    """One mixture per block, descriptors of the watched ones, and what the heads are solved from."""

    backbone: Backbone
    options: SemaOptions = field(default_factory=SemaOptions)
    mixtures: dict[int, Mixture] = field(default_factory=dict)
    descriptors: dict[int, list[Descriptor]] = field(default_factory=dict)
    statistics: list[ClassStatistics] = field(default_factory=list)
    head: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)  # class -> weight, bias: as published
    begin: int = 0  # the block that given states enter: the first batch has adapters from there on

    @property
    def cut(self) -> int:
        """Where the watched blocks begin: what lies before is frozen after the first batch."""
        return self.backbone.num_blocks - self.options.watched


@dataclass(frozen=True, slots=True)
class Shift:
    """Of one block: what decides (the largest, over full minibatches of held-out rows, of the least mean z-score; the
    ragged ones decide nothing), and the mean z-score by adapter."""

    least: float
    z_scores: dict[str, float]


@dataclass(frozen=True, slots=True)
class Scan:
    """What a batch's detection scan found per watched block, and the blocks that grew."""

    shifts: dict[int, Shift]
    expanded: tuple[int, ...]

    @property
    def z_scores(self) -> dict[int, dict[str, float]]:
        """Block -> adapter's number -> mean z-score."""
        return {block: shift.z_scores for block, shift in self.shifts.items()}


def learn_first(
    sema: Sema, states: Sequence[Tensor], labels: Sequence[str], held_out: Sequence[int], seed: int
) -> Scan:
    """Batch 0: an adapter in every block, trained from the embedding on; descriptors in the watched blocks."""
    scan = begin(sema, states, labels, held_out, seed)
    suffix_states = enter_suffix(sema, states)
    if len(held_out) >= LEAST_HELD:  # of a block without a descriptor nothing is known
        for block in range(sema.cut, sema.backbone.num_blocks):
            sema.descriptors[block] = [describe(sema, suffix_states, block, held_out)]
    return scan


def begin(sema: Sema, states: Sequence[Tensor], labels: Sequence[str], held_out: Sequence[int], seed: int) -> Scan:
    """Train the first adapter of every block; describes nothing."""
    backbone = sema.backbone
    blocks = range(sema.begin, backbone.num_blocks)
    spec = AdapterSpec(rank=sema.options.rank, last_layers=len(blocks))
    adapter = {name: tensor.requires_grad_() for name, tensor in new_adapter(backbone, spec, seed).items()}
    mixtures = {b: first_mixture(b, of_block(adapter, b), backbone.width) for b in blocks}
    rows = _trained_rows(sema, len(states), held_out)
    _train(sema, list(adapter.values()), lambda: mixtures, sema.begin, states, labels, rows, seed)
    for tensor in adapter.values():
        tensor.requires_grad_(False)
    sema.mixtures = mixtures
    return Scan({}, tuple(blocks))


def learn_next(
    sema: Sema, suffix_states: Sequence[Tensor], labels: Sequence[str], held_out: Sequence[int], seed: int
) -> Scan:
    """A later batch: scan the watched blocks from shallow to deep, grow where nothing explains it.

    Whether a block grows depends on shallower blocks only, so one such pass reaches what repeated scans would.
    """
    scan = grow(sema, suffix_states, labels, held_out, seed)
    for block in scan.expanded:
        sema.descriptors.setdefault(block, []).append(describe(sema, suffix_states, block, held_out))
    if not scan.expanded and sema.options.published_head:
        rows = _trained_rows(sema, len(suffix_states), held_out)
        _train(sema, [], lambda: sema.mixtures, sema.cut, suffix_states, labels, rows, seed)
    return scan


def grow(
    sema: Sema,
    suffix_states: Sequence[Tensor],
    labels: Sequence[str],
    held_out: Sequence[int],
    seed: int,
    blocks: Collection[int] | None = None,
) -> Scan:
    """The scan without its descriptors; with `blocks` these grow, as was found before, and nothing is measured. With
    fewer than two held-out rows nothing is, and nothing grows."""
    found: dict[int, Shift] = {}
    if blocks is None and len(held_out) < LEAST_HELD:
        return Scan({}, ())
    expanded: list[int] = []
    for block in range(sema.cut, sema.backbone.num_blocks):
        if blocks is None:
            found[block] = measure(sema, suffix_states, block, held_out)
        grows = found[block].least > sema.options.threshold if blocks is None else block in blocks
        if grows:
            _expand(sema, suffix_states, labels, held_out, block, seed + block)
            expanded.append(block)
    return Scan(found, tuple(expanded))


def of_block(adapter: AdapterWeights, block: int) -> AdapterWeights:
    return {name: tensor for name, tensor in adapter.items() if name.startswith(f"blocks.{block}.")}


def enter_suffix(sema: Sema, states: Sequence[Tensor]) -> list[Tensor]:
    """From given states to those entering the first watched block, under the first batch's adapters."""
    backbone, out = sema.backbone, [torch.empty(0)] * len(states)
    for chosen, padded in backbone.minibatches([len(state) for state in states]):
        hidden_BTD, lengths_B = backbone.pad([states[i] for i in chosen], padded, backbone.rows)
        with torch.inference_mode():
            hidden_BTD = backbone.run_blocks(
                hidden_BTD, lengths_B, sema.begin, sema.cut, _deltas(sema.mixtures), None, len(chosen)
            )
        for row, i in enumerate(chosen):
            out[i] = hidden_BTD[row, : len(states[i])].clone()
    return out


def add_statistics(sema: Sema, shards: Sequence[tuple[Sequence[Tensor], Sequence[str]]], grown: bool = True) -> Head:
    """The exact head of the mixture as it is now; after an expansion every earlier shard's features are taken again."""
    kept = [] if grown else sema.statistics
    for states, labels in shards[len(kept) :]:
        suffix = run_suffix(sema.backbone, states, sema.cut, deltas=_deltas(sema.mixtures))
        kept = [*kept, class_statistics(suffix.features_NF, labels)]
    sema.statistics = kept
    return solve_head(kept)


def answer_sema(sema: Sema, head: Head, suffix_states: Sequence[Tensor]) -> list[str]:
    """One pass through the mixture; by the exact head, or by the published one."""
    features_NF = run_suffix(sema.backbone, suffix_states, sema.cut, deltas=_deltas(sema.mixtures)).features_NF
    if sema.options.published_head:
        names = sorted(sema.head)
        weight_CF, bias_C = (torch.stack([sema.head[name][i] for name in names]) for i in (0, 1))
        return [names[i] for i in functional.linear(late_view(features_NF), weight_CF, bias_C).argmax(1).tolist()]
    return [head.labels[i] for i in head_scores(head, features_NF).argmax(1).tolist()]


def _deltas(mixtures: dict[int, Mixture]) -> dict[int, Delta]:
    return {block: mixture.mix for block, mixture in mixtures.items()}


def measure(sema: Sema, states: Sequence[Tensor], block: int, held_out: Sequence[int]) -> Shift:
    """Of a block that has no descriptor nothing is known: it explains no batch."""
    if not sema.descriptors.get(block):
        return Shift(math.inf, {})
    rows = list(held_out)
    size = min(DETECTION_ROWS, len(rows))
    signatures_LND = _signature(sema, [states[i] for i in rows], block)
    z_KN = torch.stack([z_scores(each, signatures_LND, sema.options.two_sided)[0] for each in sema.descriptors[block]])
    least = [z_KN[:, first : first + size].mean(1).min() for first in range(0, len(rows) - size + 1, size)]
    return Shift(float(max(least)), {str(k): round(float(z), 4) for k, z in enumerate(z_KN.mean(1))})


def _signature(sema: Sema, states: Sequence[Tensor], block: int) -> Tensor:
    """(1, N, D): the normalised pooled residual of one block under the mixtures before it."""
    return run_suffix(sema.backbone, states, sema.cut, deltas=_deltas(sema.mixtures), stop=block + 1).signatures_LND[
        -1:
    ]


def describe(sema: Sema, states: Sequence[Tensor], block: int, held_out: Sequence[int]) -> Descriptor:
    signatures_LND = _signature(sema, states, block)
    kept = sorted(set(range(len(states))) - set(held_out))
    return fit_descriptor(signatures_LND[:, kept], signatures_LND[:, list(held_out)], sema.options.descriptor_rank)


def _expand(
    sema: Sema, states: Sequence[Tensor], labels: Sequence[str], held_out: Sequence[int], block: int, seed: int
) -> None:
    """Train one adapter and one router column in one block; everything older is frozen."""
    backbone, old = sema.backbone, sema.mixtures[block]
    spec = AdapterSpec(rank=sema.options.rank, last_layers=backbone.num_blocks - block)
    adapter = {n: t.requires_grad_() for n, t in of_block(new_adapter(backbone, spec, seed), block).items()}
    generator = torch.Generator().manual_seed(seed)
    column_D = ((torch.rand(backbone.width, generator=generator) * 2 - 1) / backbone.width**0.5).requires_grad_()
    bias = torch.zeros(()).requires_grad_()
    trained = [*adapter.values(), column_D, bias]

    def regrow() -> dict[int, Mixture]:
        return {**sema.mixtures, block: old.grown(adapter, column_D, bias)}

    rows = _trained_rows(sema, len(states), held_out)
    _train(sema, trained, regrow, sema.cut, states, labels, rows, seed)
    frozen = {name: tensor.detach() for name, tensor in adapter.items()}
    sema.mixtures[block] = old.grown(frozen, column_D.detach(), bias.detach())


def _trained_rows(sema: Sema, count: int, held_out: Sequence[int]) -> Sequence[int]:
    return sorted(set(range(count)) - set(held_out)) if sema.options.spare_held_out else range(count)


def _train(
    sema: Sema,
    trained: list[Tensor],
    mixtures: Callable[[], dict[int, Mixture]],
    cut: int,
    states: Sequence[Tensor],
    labels: Sequence[str],
    rows: Sequence[int],
    seed: int,
) -> None:
    """Cross-entropy on the rows' own classes; head rows of older classes are left alone, new ones start at zero."""
    states, labels = [states[i] for i in rows], [labels[i] for i in rows]
    names = sorted(set(labels))
    targets_N = torch.tensor([names.index(label) for label in labels])
    width = sema.backbone.width * num_states(sema.options.watched)  # what every later batch sees as well
    blank = (torch.zeros(width), torch.zeros(()))
    weight_CF, bias_C = (torch.stack([sema.head.get(n, blank)[i] for n in names]).requires_grad_() for i in (0, 1))

    def loss_of(rows: list[int]) -> Tensor:
        chosen = [states[i] for i in rows]
        features_BF = late_view(training_features(sema.backbone, chosen, cut, _deltas(mixtures())))
        return functional.cross_entropy(functional.linear(features_BF[:, -width:], weight_CF, bias_C), targets_N[rows])

    descend([(trained, 1.0), ([weight_CF, bias_C], 1.0)], loss_of, len(states), sema.options.descent, seed)
    sema.head.update({name: (weight_CF[i].detach(), bias_C[i].detach()) for i, name in enumerate(names)})
