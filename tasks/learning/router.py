"""SEMA's expandable router: one layer's adapters, mixed per record, old columns frozen.

Shapes: B rows, T tokens, D width, K adapters. Published source: SEMA (arXiv 2403.18886).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tasks.learning.adapters import AdapterWeights, mixed, mixture_of


@dataclass(frozen=True)
class Mixture:
    """The adapters of one block with a router column each."""

    block: int
    adapters: tuple[AdapterWeights, ...]
    router_KD: Tensor
    bias_K: Tensor

    def grown(self, adapter: AdapterWeights, column_D: Tensor, bias: Tensor) -> "Mixture":
        """One more adapter and column; those before are taken over unchanged."""
        router_KD = torch.cat([self.router_KD, column_D[None]])
        return Mixture(self.block, (*self.adapters, adapter), router_KD, torch.cat([self.bias_K, bias[None]]))

    def mix(self, hidden_BTD: Tensor, real_BT: Tensor | None = None) -> Tensor:
        """sum_k softmax(router(mean over real tokens of h))_k f_k(h)."""
        return mixed(*mixture_of(self.to_tensors(), self.block))(hidden_BTD, real_BT)

    def to_tensors(self) -> AdapterWeights:
        """Adapters and columns side by side, (K, ..), under the names that `mixture_of` reads."""
        stacked = {name: torch.stack([adapter[name] for adapter in self.adapters]) for name in self.adapters[0]}
        columns = {"weight": self.router_KD, "bias": self.bias_K}
        return stacked | {f"blocks.{self.block}.router.{name}": tensor for name, tensor in columns.items()}

    @classmethod
    def from_tensors(cls, weights: Mapping[str, Tensor], block: int) -> "Mixture":
        router_KD, bias_K, _ = mixture_of(weights, block)
        places = [f"blocks.{block}.{name}" for name in ("down.weight", "down.bias", "up.weight", "up.bias")]
        adapters = tuple({place: weights[place][k] for place in places} for k in range(len(bias_K)))
        return cls(block, adapters, router_KD, bias_K)


def first_mixture(block: int, adapter: AdapterWeights, width: int) -> Mixture:
    """One adapter alone: its share is one whatever the column holds."""
    return Mixture(block, (adapter,), torch.zeros(1, width), torch.zeros(1))
