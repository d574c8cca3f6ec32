"""Train one adapter with several processes, one a GPU, through accelerate: each takes its part of every minibatch.

The parts' gradients add up to the minibatch's, but for rounding: the sum runs in another order. So the bytes are not
those of one process, and no guarantee of equal bytes covers what is trained here.

Shapes: N records, T tokens (ragged), D width.
"""

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from multiprocessing.queues import SimpleQueue
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from safetensors.torch import load, save
from torch import Tensor, distributed, multiprocessing
from torch.multiprocessing.spawn import start_processes

from tasks.learning.adapters import AdapterSpec
from tasks.learning.backbones import Backbone
from tasks.learning.training import LossOf, Recipe, TrainState, train_slice

LOOK_SECONDS = 0.05
LOOPBACK = "127.0.0.1"


class Slice(NamedTuple):
    """What `train_slice` trains on, in its order, but for the backbone."""

    states: Sequence[Tensor]
    labels: Sequence[str]
    cut: int
    spec: AdapterSpec
    recipe: Recipe
    seed: int
    start: TrainState | None = None


def train_together(
    open_backbone: Callable[..., Backbone],
    work: Slice,
    processes: int,
    cuda: bool,
    on_epoch: Callable[[int, float], None] | None = None,
) -> TrainState:
    """The slice's state, trained by so many processes of this machine; `open_backbone(device=...)` runs in each.

    With `cuda` each has a GPU of its own and they speak NCCL, else all are on the CPU and speak gloo. What a process
    raises ends all of them, and is raised here as torch.multiprocessing.ProcessRaisedException.
    """
    told: SimpleQueue[Any] = multiprocessing.get_context("spawn").SimpleQueue()
    states, *rest = work
    # one tensor instead of one a record: each that is shared holds a file open
    given = (torch.cat(list(states)), [len(state) for state in states], rest)
    arguments = (processes, _free_port(), cuda, torch.get_num_threads(), open_backbone, *given, told)
    children = start_processes(_train, arguments, processes, join=False)
    ended, trained = False, b""
    while not ended:
        ended = children.join(timeout=LOOK_SECONDS)
        while not told.empty():
            message = told.get()
            if isinstance(message, bytes):
                trained = message
            elif on_epoch is not None:
                on_epoch(*message)
    return TrainState.from_tensors(load(trained))


def _train(
    rank: int,
    processes: int,
    port: int,
    cuda: bool,
    threads: int,
    open_backbone: Callable[..., Backbone],
    states_TD: Tensor,
    lengths: list[int],
    rest: list[Any],
    told: "SimpleQueue[Any]",
) -> None:
    """One of the processes; the first tells what it sees, for all hold the same weights after every step."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_ADDR": LOOPBACK, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()} | {"OMP_NUM_THREADS": str(threads)})
    torch.set_num_threads(threads)
    accelerator = Accelerator(cpu=not cuda)
    tell = told.put if accelerator.is_main_process else _say_nothing
    work = Slice(states_TD.split(lengths), *rest)
    state = train_slice(
        open_backbone(device=str(accelerator.device)),
        *work,
        on_epoch=lambda epoch, loss: tell((epoch, loss)),
        backward=partial(_backward, accelerator),
    )
    tell(save(state.to_tensors()))
    distributed.destroy_process_group()


def _backward(
    accelerator: Accelerator, loss_of: LossOf, chosen: Sequence[int], weights: Mapping[str, Tensor]
) -> Tensor:
    """Gradients and loss of a whole minibatch, as the sum of the parts weighted by their rows."""
    mine = chosen[accelerator.process_index :: accelerator.num_processes]
    loss = torch.zeros((), device=accelerator.device)
    if mine:
        part = loss_of(mine) * (len(mine) / len(chosen))
        part.backward()
        loss = part.detach()
    grads = [torch.zeros_like(tensor) if tensor.grad is None else tensor.grad for tensor in weights.values()]
    summed = accelerator.reduce(torch.cat([loss.reshape(1), *(grad.reshape(-1) for grad in grads)]), "sum")
    loss_1, *parts = summed.split([1, *(grad.numel() for grad in grads)])
    for tensor, part in zip(weights.values(), parts, strict=True):
        tensor.grad = part.view_as(tensor).clone()
    return loss_1[0]


def _say_nothing(_message: object) -> None:
    pass


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
    return port
