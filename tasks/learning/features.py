"""What heads, descriptors and retrieval see: pooled states of the suffix, the same bytes in any company.

Shapes: N records, P pairs of a record and an adapter, B rows, T tokens, D width, L suffix blocks, V = 2 views,
F = V S D head features of S <= 4 states in each view.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from kernels.bank import Bank
from kernels.candidate_eval import candidate_eval
from kernels.grouped_lora import route_records
from tasks.learning.adapters import AdapterWeights, deltas_of, places_of
from tasks.learning.attach import Joint
from tasks.learning.backbones import Backbone, Delta, mean_tokens
from tasks.learning.heads import VIEWS

MAX_STATES = 4


def num_states(layers: int) -> int:
    """How many pooled states each view has when the suffix has this many blocks."""
    return min(MAX_STATES, layers + 1)


def num_features(width: int, layers: int) -> int:
    """F: how many features a head sees when the suffix has this many blocks."""
    return VIEWS * num_states(layers) * width


def late_view(features_NF: Tensor) -> Tensor:
    """(N, S D): what the last blocks say, as the published heads see it."""
    return features_NF.chunk(VIEWS, 1)[0]


@dataclass(frozen=True, slots=True)
class Start:
    """What the passes of all adapters over one record share: the pooled state entering the cut (V, D), and the joint of
    the first suffix block (T, D)."""

    entering_VD: Tensor
    joint: Joint


@dataclass(frozen=True, slots=True)
class SuffixPass:
    """One run of the blocks from the cut on; `starts` where the pass was asked to keep them."""

    features_NF: Tensor
    signatures_LND: Tensor
    starts: Sequence[Start] = field(default=())


def run_suffix(
    backbone: Backbone,
    states: Sequence[Tensor],
    cut: int,
    adapter: AdapterWeights | None = None,
    deltas: Mapping[int, Delta] | None = None,
    stop: int | None = None,
    keep_starts: bool = False,
) -> SuffixPass:
    """Head features and signatures of every record, float32 on the CPU, from one pass over the suffix.

    Features are two views, every state normalised over its width: what the backbone pools of the last four states (the
    one entering the cut among them where the suffix is short), then the token means of the first four, the entering one
    included. `deltas` stand in for an adapter; `stop` ends the pass early.
    Signatures are the token means of the residual before each MLP, normalised over their width.
    """
    stop = backbone.num_blocks if stop is None else stop
    layers = stop - cut
    features_NF = torch.empty(len(states), num_features(backbone.width, layers))
    signatures_LND = torch.empty(layers, len(states), backbone.width)
    starts: list[Start | None] = [None] * len(states) if keep_starts else []
    deltas = deltas_of(adapter, backbone.device) if deltas is None else deltas
    for chosen, padded in backbone.minibatches([len(state) for state in states]):
        hidden_BTD, lengths_B = backbone.pad([states[i] for i in chosen], padded, backbone.rows)
        seen = _Seen(backbone, lengths_B, [backbone.pool(hidden_BTD, lengths_B)])
        with torch.inference_mode():
            backbone.run_blocks(hidden_BTD, lengths_B, cut, stop, deltas, seen.keep, len(chosen))
            features_NF[chosen] = seen.features(len(chosen))
            signatures_LND[:, chosen] = seen.signatures(len(chosen))
            for row, i in enumerate(chosen if keep_starts else ()):
                starts[i] = seen.start(row, len(states[i]))
    return SuffixPass(features_NF, signatures_LND, [start for start in starts if start is not None])


def run_pairs(
    backbone: Backbone, starts: Sequence[Start], cut: int, bank: Bank, pairs: Sequence[tuple[int, int]]
) -> Tensor:
    """(P, F): head features of (record, slot of the bank) pairs, many adapters in one pass.

    What no adapter has touched is not run again: a record under ten adapters costs one first block, not ten. The bytes
    of a pair are those of `run_suffix` under that adapter, whatever else is in the pass.
    """
    suffix = range(cut, backbone.num_blocks)
    bank = {name: stack.to(backbone.device) for name, stack in bank.items()}
    adapters = [places_of(bank, block) for block in suffix]
    scale_K = torch.ones(len(next(iter(bank.values()))), device=backbone.device)
    features_PF = torch.empty(len(pairs), num_features(backbone.width, len(suffix)))
    for chosen, padded in backbone.minibatches([len(starts[record].joint.residual) for record, _ in pairs]):
        mine = [starts[pairs[i][0]] for i in chosen]
        slots = [pairs[i][1] for i in chosen] + [-1] * (backbone.rows - len(chosen))
        residual_BTD, lengths_B = backbone.pad([start.joint.residual for start in mine], padded, backbone.rows)
        stem_BTD, _ = backbone.pad([start.joint.stem for start in mine], padded, backbone.rows)
        entering_BVD = torch.zeros(backbone.rows, VIEWS, backbone.width)
        entering_BVD[: len(mine)] = torch.stack([start.entering_VD for start in mine])
        blocks = [backbone.halves(block, len(chosen)) for block in suffix]
        route = route_records(torch.tensor(slots, device=backbone.device), scale_K)
        mask_BT = backbone.mask(residual_BTD, lengths_B)
        with torch.inference_mode():
            states = candidate_eval(Joint(residual_BTD, stem_BTD), blocks, adapters, route, mask_BT)
            pooled = [entering_BVD.to(backbone.device), *(backbone.pool(state_BTD, lengths_B) for state_BTD in states)]
            features_PF[chosen] = _Seen(backbone, lengths_B, pooled).features(len(chosen))
    return features_PF


def run_from(backbone: Backbone, starts: Sequence[Start], cut: int, adapter: AdapterWeights) -> Tensor:
    """(N, F): head features of records under one adapter or mixture, from where a frozen pass left their starts."""
    features_NF = torch.empty(len(starts), num_features(backbone.width, backbone.num_blocks - cut))
    deltas = deltas_of(adapter, backbone.device)
    for chosen, padded in backbone.minibatches([len(start.joint.residual) for start in starts]):
        mine = [starts[i] for i in chosen]
        residual_BTD, lengths_B = backbone.pad([start.joint.residual for start in mine], padded, backbone.rows)
        stem_BTD, _ = backbone.pad([start.joint.stem for start in mine], padded, backbone.rows)
        entering_BVD = torch.zeros(backbone.rows, VIEWS, backbone.width)
        entering_BVD[: len(mine)] = torch.stack([start.entering_VD for start in mine])
        with torch.inference_mode():
            added_BTD = deltas[cut](residual_BTD, backbone.mask(residual_BTD, lengths_B))
            hidden_BTD = backbone.attach_points[cut].finish(Joint(residual_BTD, stem_BTD), added_BTD)
            pooled = [entering_BVD.to(backbone.device), backbone.pool(hidden_BTD, lengths_B)]
            seen = _Seen(backbone, lengths_B, pooled)
            backbone.run_blocks(hidden_BTD, lengths_B, cut + 1, backbone.num_blocks, deltas, seen.keep, len(chosen))
            features_NF[chosen] = seen.features(len(chosen))
    return features_NF


def _views(pooled: Sequence[Tensor]) -> Tensor:
    """(B, F) of the (B, V, D) pooled states of a suffix, the one entering it first."""
    count = num_states(len(pooled) - 1)
    late_BSD = torch.stack([state_BVD[:, 0] for state_BVD in pooled[-count:]], 1)
    early_BSD = torch.stack([state_BVD[:, 1] for state_BVD in pooled[:count]], 1)
    return functional.layer_norm(torch.cat([late_BSD, early_BSD], 1), late_BSD.shape[-1:]).flatten(1)


@dataclass(frozen=True)
class _Seen:
    """What one minibatch left behind on its way through the blocks."""

    backbone: Backbone
    lengths_B: Tensor
    pooled: list[Tensor]
    joints: list[Joint] = field(default_factory=list)

    def keep(self, _block: int, joint: Joint, output_BTD: Tensor) -> None:
        self.pooled.append(self.backbone.pool(output_BTD, self.lengths_B))
        self.joints.append(joint)

    def features(self, count: int) -> Tensor:
        return _views(self.pooled)[:count].cpu()

    def signatures(self, count: int) -> Tensor:
        means_LBD = torch.stack([mean_tokens(joint.residual, self.lengths_B) for joint in self.joints])
        return functional.layer_norm(means_LBD[:, :count], (self.backbone.width,)).cpu()

    def start(self, row: int, length: int) -> Start:
        joint = Joint(*(tensor[row, :length].cpu() for tensor in self.joints[0]))
        return Start(self.pooled[0][row].cpu(), joint)


def features(backbone: Backbone, states: Sequence[Tensor], cut: int, adapter: AdapterWeights | None = None) -> Tensor:
    """(N, F): what a head sees of records, under an adapter or under the frozen backbone alone."""
    return run_suffix(backbone, states, cut, adapter).features_NF


def signatures(backbone: Backbone, states: Sequence[Tensor], cut: int) -> Tensor:
    """(L, N, D): the frozen backbone's normalised pooled residuals, for descriptors, shift tests and retrieval."""
    return run_suffix(backbone, states, cut).signatures_LND


def training_features(backbone: Backbone, states: Sequence[Tensor], cut: int, deltas: Mapping[int, Delta]) -> Tensor:
    """(B, F): the same features of one minibatch, with gradients to whatever the deltas hold; on the backbone's device.

    Padding depends on the minibatch here, so these bytes do depend on a record's company.
    """
    hidden_BTD, lengths_B = backbone.pad(states, max(len(state) for state in states), len(states))
    entering_BVD = backbone.pool(hidden_BTD, lengths_B)
    return _differentiable(backbone, hidden_BTD, lengths_B, [entering_BVD], cut, deltas)


def training_features_from(
    backbone: Backbone, starts: Sequence[Start], cut: int, deltas: Mapping[int, Delta]
) -> Tensor:
    """(B, F): as `training_features`, from where the first adapter joins: block `cut` is neither run nor differentiated
    again."""
    longest = max(len(start.joint.residual) for start in starts)
    residual_BTD, lengths_B = backbone.pad([start.joint.residual for start in starts], longest, len(starts))
    stem_BTD, _ = backbone.pad([start.joint.stem for start in starts], longest, len(starts))
    added_BTD = deltas[cut](residual_BTD, backbone.mask(residual_BTD, lengths_B))
    hidden_BTD = backbone.attach_points[cut].finish(Joint(residual_BTD, stem_BTD), added_BTD)
    entering_BVD = torch.stack([start.entering_VD for start in starts]).to(backbone.device)
    pooled = [entering_BVD, backbone.pool(hidden_BTD, lengths_B)]
    return _differentiable(backbone, hidden_BTD, lengths_B, pooled, cut + 1, deltas)


def _differentiable(
    backbone: Backbone,
    hidden_BTD: Tensor,
    lengths_B: Tensor,
    pooled: list[Tensor],
    first: int,
    deltas: Mapping[int, Delta],
) -> Tensor:
    def keep(_block: int, _joint: Joint, output_BTD: Tensor) -> None:
        pooled.append(backbone.pool(output_BTD, lengths_B))

    backbone.run_blocks(hidden_BTD, lengths_B, first, backbone.num_blocks, deltas, keep)
    return _views(pooled)
