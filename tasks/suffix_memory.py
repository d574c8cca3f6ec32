"""Remember suffix passes in this process: evaluation asks for the same held-out rows after every batch.

A pass depends on a record's states and the adapter's weights alone (the backbone is batch-invariant), so both digests
are the key, and nothing has to be invalidated. Entries are small, bounded in number, and die with the process.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from hashlib import blake2b

import torch
from torch import Tensor

from tasks.learning.backbones import Backbone
from tasks.learning.banks import AdapterBank
from tasks.learning.composition import Pairs, Passes
from tasks.learning.features import Start, SuffixPass, run_suffix
from tasks.learning.tensors import digest_of

ENTRIES = 8192

_Key = tuple[str, int, str, bytes]
_memory: OrderedDict[_Key, tuple[Tensor, ...]] = OrderedDict()


def forget_passes() -> None:
    """A deletion leaves nothing of a record behind in this process either."""
    _memory.clear()


def _frozen(backbone: Backbone, states: Sequence[Tensor], cut: int) -> SuffixPass:
    def run(missing: list[int]) -> list[tuple[Tensor, ...]]:
        found = run_suffix(backbone, [states[n] for n in missing], cut)
        return list(zip(found.features_NF, found.signatures_LND.unbind(1), strict=True))

    keys = [(backbone.digest, cut, "", _digest(state)) for state in states]
    found = _remembered(keys, run)
    return SuffixPass(torch.stack([f for f, _ in found]), torch.stack([s for _, s in found], 1))


def _adapted(
    backbone: Backbone, states: Sequence[Tensor], _starts: Sequence[Start], cut: int, bank: AdapterBank, pairs: Pairs
) -> Tensor:
    """Records of pairs that are not remembered run their first suffix block again: a remembered pass keeps no start."""

    def run(missing: list[int]) -> list[tuple[Tensor, ...]]:
        records = sorted({pairs[n][0] for n in missing})
        place = {record: n for n, record in enumerate(records)}
        first = run_suffix(backbone, [states[r] for r in records], cut, stop=cut + 1, keep_starts=True)
        found_PF = bank.features(backbone, first.starts, cut, [(place[pairs[n][0]], pairs[n][1]) for n in missing])
        return [(row_F,) for row_F in found_PF]

    weights = {adapter: digest_of(bank.read(adapter)) for adapter in {adapter for _, adapter in pairs}}
    digests = {record: _digest(states[record]) for record in {record for record, _ in pairs}}
    keys = [(backbone.digest, cut, weights[adapter], digests[record]) for record, adapter in pairs]
    return torch.stack([row_F for (row_F,) in _remembered(keys, run)])


def _remembered(keys: Sequence[_Key], run: Callable[[list[int]], list[tuple[Tensor, ...]]]) -> list[tuple[Tensor, ...]]:
    """What the keys stand for; `run` gets the numbers of those that are not known."""
    missing = [n for n, key in enumerate(keys) if key not in _memory]
    if missing:
        _memory.update(zip((keys[n] for n in missing), run(missing), strict=True))
    found = [_memory[key] for key in keys]
    for key in keys:
        _memory.move_to_end(key)
    while len(_memory) > ENTRIES:
        _memory.popitem(last=False)
    return found


def _digest(state_TD: Tensor) -> bytes:
    return blake2b(state_TD.contiguous().numpy().tobytes()).digest()


REMEMBERED = Passes(_frozen, _adapted)
"""The same bytes as passes that are run at once, running only what was not run before."""
