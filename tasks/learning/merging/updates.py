"""LoRA's updates B A in place of its factors, and back: the closest factors of a rank (Eckart and Young, 1936)."""

import torch

from tasks.learning.adapters import AdapterWeights
from tasks.learning.merging.factors import factors_of
from tasks.learning.merging.svd import cut


def updates_of(adapter: AdapterWeights) -> AdapterWeights:
    """Name of the inner factor -> update (O, I) of its place."""
    return {each.down: adapter[each.up] @ adapter[each.down] for each in factors_of(adapter)}


def cut_to(updates: AdapterWeights, like: AdapterWeights) -> AdapterWeights:
    """The factors, of the ranks of `like`, whose products are closest to the updates."""
    merged: AdapterWeights = {}
    for each in factors_of(like):
        update_OI = updates[each.down]
        once_1II = torch.eye(update_OI.shape[1], dtype=update_OI.dtype)[None]
        merged[each.down], merged[each.up] = cut(torch.ones(1), once_1II, update_OI[None], len(like[each.down]))
    return merged
