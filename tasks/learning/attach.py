"""Where adapters attach, found from the module tree and one traced call, for any encoder of standard blocks.

Shapes: B rows, T tokens, D width, F hidden width of the MLP.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from threading import get_ident
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from registry.errors import UnsupportedBackboneError

SUPPORTED = "BERT, RoBERTa, DistilBERT, ViT, DeiT and DINOv2 are tested"


class Joint(NamedTuple):
    """Where an adapter meets its block, both (.., T, D): the residual h before the MLP, and what f(h) is added to.

    Nothing before it depends on the adapter, so all adapters of a block share it.
    """

    residual: Tensor
    stem: Tensor


@dataclass(frozen=True, slots=True)
class AttachPoint:
    """The MLP of one block: its projections, and how the residual h before it enters.

    A block that normalises first computes h + MLP(norm(h)): h is read at the norm's input and f(h) joins the block's
    output. One that normalises last computes norm(h + MLP(h)): f(h) joins the down-projection's output.
    """

    block: nn.Module
    up: nn.Linear
    down: nn.Linear
    norm: nn.Module | None  # the norm before the MLP; None where the block normalises last
    last_norm: nn.Module | None  # the norm after it, in such a block

    def attach(self, hooks: ExitStack, delta: Callable[[Tensor], Tensor] | None) -> list[Tensor]:
        """Add `delta` while `hooks` is open; the list receives residual and stem (B, T, D) when the block runs.

        Threads share a backbone, and a module calls the hooks of all of them: each answers its own thread alone.
        """
        seen: list[Tensor] = []
        mine = get_ident()

        def read(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            if get_ident() == mine:
                seen.append(args[0])

        def add(_module: nn.Module, _args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            if get_ident() != mine:
                return None
            seen.append(output)
            return None if delta is None else output + delta(seen[0])

        hooks.callback((self.norm or self.up).register_forward_pre_hook(read).remove)
        hooks.callback((self.down if self.norm is None else self.block).register_forward_hook(add).remove)
        return seen

    def finish(self, joint: Joint, added: Tensor) -> Tensor:
        """The block's output (B, T, D) from its joint and what the adapters add, to the bit as the block gives it."""
        joined = joint.stem + added
        return joined if self.last_norm is None else self.last_norm(joined + joint.residual)


def find_blocks(model: nn.Module) -> nn.ModuleList:
    """The one list of modules that is as long as the configuration says the model is deep."""
    config: Any = model.config
    depth = getattr(config, "num_hidden_layers", None)
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and depth and len(m) == depth]
    if not lists:
        raise _unsupported(model, f"no list of {depth} blocks in its module tree")
    return lists[0]


def find_attach_points(model: nn.Module, blocks: nn.ModuleList) -> list[AttachPoint]:
    """One attach point per block; raises UnsupportedBackboneError naming what is missing."""
    return [_attach_point(model, block, width_of(model)) for block in blocks]


def width_of(model: nn.Module) -> int:
    """The width of the hidden states, as the configuration names it."""
    config: Any = model.config
    width = getattr(config, "hidden_size", None) or getattr(config, "dim", None)
    if not isinstance(width, int):
        raise _unsupported(model, "its configuration names no single hidden_size")
    return width


def _attach_point(model: nn.Module, block: nn.Module, width: int) -> AttachPoint:
    calls = _trace(model, block, width)
    ups = [m for m in calls if isinstance(m, nn.Linear) and m.in_features == width != m.out_features]
    downs = [m for m in calls if isinstance(m, nn.Linear) and m.out_features == width != m.in_features]
    if not ups or not downs:
        raise _unsupported(
            model, f"a {type(block).__name__} has no pair of linear layers that widens and narrows {width}"
        )
    up, down = ups[0], downs[-1]
    norms = [i for i, m in enumerate(calls) if isinstance(m, nn.LayerNorm)]
    after = [i for i in norms if i > calls.index(down)]
    if after:
        return AttachPoint(block, up, down, None, calls[after[-1]])
    before = [i for i in norms if i < calls.index(up)]
    if not before:
        raise _unsupported(model, f"a {type(block).__name__} has no LayerNorm beside its MLP")
    return AttachPoint(block, up, down, calls[before[-1]], None)


def _trace(model: nn.Module, block: nn.Module, width: int) -> list[nn.Module]:
    """The leaf modules of a block in the order in which one small input calls them."""
    calls: list[nn.Module] = []
    device = next(model.parameters()).device
    with ExitStack() as hooks, torch.inference_mode():
        for module in block.modules():
            hooks.callback(module.register_forward_pre_hook(lambda m, _args: calls.append(m)).remove)
        try:
            output = block(torch.ones(1, 2, width, device=device), attention_mask=None)
        except (TypeError, RuntimeError, ValueError) as error:
            raise _unsupported(model, f"its block cannot run alone ({error})") from error
    if not isinstance(output, Tensor):
        raise _unsupported(model, f"a {type(block).__name__} returns {type(output).__name__}, not a tensor")
    return calls


def _unsupported(model: nn.Module, why: str) -> UnsupportedBackboneError:
    kind = getattr(model.config, "model_type", "?")
    return UnsupportedBackboneError(f"{type(model).__name__} ({kind}): {why}; {SUPPORTED}")
