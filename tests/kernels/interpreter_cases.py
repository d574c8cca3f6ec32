"""Values of the Triton forms in Triton's interpreter; test_interpreter.py runs this file in a process of its own."""

import os

os.environ["TRITON_INTERPRET"] = "1"  # read when triton is first imported

import torch

from kernels.mmd_perm import labelings
from kernels.mmd_perm import reference as mmd_reference
from kernels.mmd_perm import triton as mmd_triton


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def test_mmd_perm():
    z, member = draw(83, 37), labelings(40, 43, 66, seed=0)
    actual = mmd_triton.mmd_statistics(z, member, 0.02)
    torch.testing.assert_close(actual, mmd_reference.mmd_statistics(z, member, 0.02), rtol=0, atol=3e-6)
