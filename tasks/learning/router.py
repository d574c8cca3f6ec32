"""SEMA's expandable router: one layer's adapters, mixed per record, old columns frozen.

Shapes: B rows, T tokens, D width, K adapters. Published source: SEMA (arXiv 2403.18886).
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from tasks.learning.adapters import AdapterWeights, apply_adapter
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
        logits_BK = functional.linear(hidden_BTD.mean(1), self.router_KD, self.bias_K)
        shares_BK = logits_BK.softmax(1)
        mixed_BTD = shares_BK[:, 0, None, None] * apply_adapter(self.adapters[0], self.block, hidden_BTD)
        for k, adapter in enumerate(self.adapters[1:], start=1):
            mixed_BTD = mixed_BTD + shares_BK[:, k, None, None] * apply_adapter(adapter, self.block, hidden_BTD)
        return mixed_BTD


def first_mixture(block: int, adapter: AdapterWeights, width: int) -> Mixture:
    """One adapter alone: its share is one whatever the column holds."""
    return Mixture(block, (adapter,), torch.zeros(1, width), torch.zeros(1))
