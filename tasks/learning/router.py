"""SEMA's expandable router: one layer's adapters, mixed per record, old columns frozen.

Shapes: B rows, T tokens, D width, K adapters. Published source: SEMA (arXiv 2403.18886).
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from kernels.adapter_mixture import adapter_mixture
from tasks.learning.adapters import AdapterWeights
from tasks.learning.backbones import Delta


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

    def delta(self) -> Delta:
        return self.mix

    def mix(self, hidden_BTD: Tensor) -> Tensor:
        """sum_k softmax(router(mean over tokens of h))_k f_k(h)."""
        shares_BK = functional.linear(hidden_BTD.mean(1), self.router_KD, self.bias_K).softmax(1)
        places = [f"blocks.{self.block}.{name}" for name in ("down.weight", "down.bias", "up.weight", "up.bias")]
        return adapter_mixture(hidden_BTD, shares_BK, *(torch.stack([a[p] for a in self.adapters]) for p in places))


def first_mixture(block: int, adapter: AdapterWeights, width: int) -> Mixture:
    """One adapter alone: its share is one whatever the column holds."""
    return Mixture(block, (adapter,), torch.zeros(1, width), torch.zeros(1))
