"""Remember suffix passes in this process: evaluation asks for the same held-out rows after every batch.

A pass depends on a record's states and the adapter's weights alone (the backbone is batch-invariant), so both digests
are the key, and nothing has to be invalidated. Entries are small, bounded in number, and die with the process.
"""

from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b

import torch
from torch import Tensor

from tasks.learning.adapters import AdapterWeights
from tasks.learning.backbones import Backbone
from tasks.learning.features import SuffixPass, run_suffix
from tasks.learning.tensors import digest_of

ENTRIES = 8192

_Key = tuple[str, int, str, bytes]
_memory: OrderedDict[_Key, tuple[Tensor, Tensor]] = OrderedDict()


def forget_passes() -> None:
    """A deletion leaves nothing of a record behind in this process either."""
    _memory.clear()


def run_remembered(
    backbone: Backbone, states: Sequence[Tensor], cut: int, adapter: AdapterWeights | None
) -> SuffixPass:
    """The same bytes as `run_suffix`, running only what was not run before."""
    weights = digest_of(adapter) if adapter else ""
    keys = [(backbone.digest, cut, weights, blake2b(s.contiguous().numpy().tobytes()).digest()) for s in states]
    missing = [n for n, key in enumerate(keys) if key not in _memory]
    if missing:
        found = run_suffix(backbone, [states[n] for n in missing], cut, adapter)
        for place, n in enumerate(missing):
            _memory[keys[n]] = (found.features_NF[place], found.signatures_LND[:, place])
    passes = [_memory[key] for key in keys]
    for key in keys:
        _memory.move_to_end(key)
    while len(_memory) > ENTRIES:
        _memory.popitem(last=False)
    return SuffixPass(torch.stack([f for f, _ in passes]), torch.stack([s for _, s in passes], 1))
