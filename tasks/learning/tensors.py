"""Small conversions that every storable record of this room needs."""

import hashlib
import json
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from registry.errors import TerminalError


class NonFiniteError(TerminalError):
    """A tensor holds NaN or infinity where a decision would be taken from it."""


def require_finite(what: str, tensor: Tensor) -> Tensor:
    """The tensor itself; raises NonFiniteError, since every comparison with NaN is silently false."""
    if not bool(torch.isfinite(tensor).all()):
        raise NonFiniteError(f"{what}: {int((~torch.isfinite(tensor)).sum())} non-finite values; check its inputs")
    return tensor


def text_to_tensor(value: Sequence[str] | Mapping[str, float | str | None]) -> Tensor:
    """JSON as a uint8 tensor, so that names travel inside a safetensors file."""
    return torch.from_numpy(np.frombuffer(json.dumps(value, ensure_ascii=False).encode(), dtype=np.uint8).copy())


def tensor_to_labels(tensor: Tensor) -> tuple[str, ...]:
    return tuple(json.loads(tensor.numpy().tobytes()))


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}:".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
