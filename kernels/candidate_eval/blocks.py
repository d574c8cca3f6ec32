"""A frozen block in two halves, and what adapters may change in between."""

# P pairs, N records, K slots

from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor

from kernels.grouped_lora import Weights

Shared = tuple[Tensor, ...]
"""What a block has computed before its first adapter; one row per record, or per pair once records are paired."""

Adapters = Mapping[str, Weights]
"""Place in a block -> its slot tensors, with biases for the bottleneck form."""

Adapt = Callable[[str, Tensor, Tensor], Tensor]
"""(place, its inputs, what the frozen layer gives for them) -> that under each row's adapter."""


class Block(NamedTuple):
    """`enter` takes the states entering the block and the mask as far as no adapter of the block matters; `leave` goes
    on from there, under the adapters, to the states leaving it. The mask is (P, T), True for a real token, or None."""

    enter: Callable[[Tensor, Tensor | None], Shared]
    leave: Callable[[Shared, Tensor | None, Adapt], Tensor]


def every_pair(shared: Shared, num: int) -> Shared:
    """Rows of N records repeated for `num` adapters: adapter by adapter, all records, as `route_all` numbers them."""
    return tuple(tensor.expand(num, *tensor.shape).flatten(0, 1) for tensor in shared)
