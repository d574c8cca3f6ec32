"""Moving averages of an adapter's tensors against MOS's loop over them: `python -m kernels.ema.bench [--json]`."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from kernels.bench import Case, main
from kernels.ema import ema, reference

BASELINE = "MOS's loop over tensors, (1 - m) a + m b each"
RATE = 1e-3  # small, so that the many updates of a timing neither grow nor vanish


def once(update: object, averages: list[Tensor], values: list[Tensor]) -> tuple[Tensor, ...]:
    update(averages, values, RATE)  # type: ignore[operator]
    return tuple(averages)


def cases(device: torch.device) -> Iterator[Case]:
    for blocks, dim, rank in [(12, 768, 16), (6, 384, 8)]:
        shapes = [(rank, dim), (rank,), (dim, rank), (dim,)] * blocks
        values = [100 * torch.randn(*shape, device=device) for shape in shapes]
        start = [torch.randn(*shape, device=device) for shape in shapes]
        ours, theirs, wrong = ([t.clone() for t in start] for _ in range(3))
        yield Case(
            f"{len(shapes)} tensors of {blocks} bottlenecks, D={dim} r={rank}",
            partial(once, reference.ema, theirs, values),
            partial(once, ema, ours, values),
            partial(once, ema, wrong, [value * 1.01 for value in values]),
            bytes_moved=4 * 3 * sum(t.numel() for t in values),
        )


if __name__ == "__main__":
    main("ema", BASELINE, cases)
