"""The one loop of stochastic gradient descent that the published methods share."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from tasks.learning.tensors import require_finite


@dataclass(frozen=True, slots=True)
class Descent:
    """SGD with momentum 0.9 and a cosine to zero."""

    epochs: int
    learning_rate: float
    weight_decay: float = 5e-4
    minibatch: int = 32


def descend(
    groups: Iterable[tuple[list[Tensor], float]],
    loss_of: Callable[[list[int]], Tensor],
    count: int,
    descent: Descent,
    seed: int,
    after_step: Callable[[], None] = lambda: None,
) -> None:
    """Minimise `loss_of` minibatches of row numbers, in place; groups are tensors and their share of the rate.

    Raises NonFiniteError when the loss diverges.
    """
    parameters = [{"params": tensors, "lr": share * descent.learning_rate} for tensors, share in groups if tensors]
    optimizer = torch.optim.SGD(parameters, momentum=0.9, weight_decay=descent.weight_decay)
    steps = descent.epochs * math.ceil(count / descent.minibatch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    generator = torch.Generator().manual_seed(seed)
    for _ in range(descent.epochs):
        for rows in torch.randperm(count, generator=generator).split(descent.minibatch):
            loss = require_finite("training loss", loss_of(rows.tolist()))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            after_step()
