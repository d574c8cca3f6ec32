"""Which form of a kernel runs: Triton on CUDA where it is installed, torch operations everywhere else."""

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

# What the Triton forms take, by the names that their configurations have.
TRITON_DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@cache
def has_triton() -> bool:
    """Triton is optional: CPU installations do without it."""
    return find_spec("triton") is not None


def runs_triton(*tensors: Tensor) -> bool:
    """True where every tensor is on CUDA in a type that the Triton forms take; float64 stays with torch."""
    return all(x.is_cuda and x.dtype in TRITON_DTYPES for x in tensors) and has_triton()
