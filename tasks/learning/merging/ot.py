"""MerA: hidden units are paired by optimal transport, then averaged (He et al., arXiv 2308.15982).

The order of a bottleneck's units is arbitrary: permuting them, with their up-projections, leaves the function alone. So
every parent's units are moved onto the first parent's at the least squared distance of all that a unit is: its row of
the down-projection, its bias and its column of the up-projection.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tasks.learning.adapters import AdapterWeights
from tasks.learning.merging.factors import Factors, factors_of
from tasks.learning.merging.linear import merge_linear


def merge_ot(parents: Sequence[AdapterWeights], shares: Sequence[float]) -> AdapterWeights:
    """The average of the aligned parents, with the first one's rank; parents may differ in rank."""
    first = parents[0]
    return merge_linear([first, *(align(parent, first) for parent in parents[1:])], shares)


def align(parent: AdapterWeights, anchor: AdapterWeights) -> AdapterWeights:
    """The parent with its units where the anchor has theirs; of equal rank it is a permutation, the same function."""
    aligned = dict(parent)
    for factors in factors_of(anchor):
        plan_QR = _plan(_units(anchor, factors), _units(parent, factors)).to(parent[factors.down])
        # a unit that stands for several takes their average input and the sum of their outputs
        grown = plan_QR.shape[1] / plan_QR.shape[0]
        aligned[factors.down] = plan_QR @ parent[factors.down]
        aligned[factors.up] = grown * parent[factors.up] @ plan_QR.mT
        if factors.bias is not None:
            aligned[factors.bias] = plan_QR @ parent[factors.bias]
    return aligned


def _units(adapter: AdapterWeights, factors: Factors) -> Tensor:
    """(R, I + O, and one more where units have a bias) float64."""
    between = [] if factors.bias is None else [adapter[factors.bias][:, None]]
    return torch.cat([adapter[factors.down], *between, adapter[factors.up].mT], 1).double()


def _plan(anchor_QU: Tensor, parent_RU: Tensor) -> Tensor:
    """(Q, R): rows sum to one. Exact transport between units of equal mass."""
    import ot  # noqa: PLC0415  # it looks for every array library there is, which takes seconds

    cost_QR = torch.cdist(anchor_QU, parent_RU, compute_mode="donot_use_mm_for_euclid_dist").square()
    plan_QR: Tensor = torch.from_numpy(ot.emd([], [], cost_QR.numpy()))
    return plan_QR * len(anchor_QU)
