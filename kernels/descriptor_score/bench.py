"""Scoring with all descriptors against SEMA's loop over them: `python -m kernels.descriptor_score.bench [--json]`."""

# L layers, K descriptors, T records or tokens, D features, H hidden

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from kernels.bench import Case, main
from kernels.descriptor_score import descriptor_score, prepare, prepare_pca, reference

BASELINE = "SEMA's loop over layers and descriptors: encode, decode, mean squared difference"

# Headline first; the one with H = 128 is SEMA's own size, bound by its products.
SHAPES = [
    (6, 64, 384, 16, 16), (6, 64, 384, 16, 4), (6, 64, 384, 16, 64), (6, 1024, 384, 16, 16), (6, 1024, 384, 16, 64),
    (6, 4096, 384, 16, 16), (3, 64, 768, 128, 8), (3, 64, 768, 128, 32), (6, 8, 384, 16, 1),
]  # fmt: skip


def autoencoders(
    layers: int, num: int, dim: int, hidden: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random weights at the scale of Kaiming's initialisation: encode, its bias, decode, its bias."""
    encode = torch.randn(layers, num, hidden, dim, device=device) / dim**0.5
    decode = torch.randn(layers, num, dim, hidden, device=device) / hidden**0.5
    return encode, torch.randn(layers, num, hidden, device=device), decode, torch.randn(layers, num, dim, device=device)


def case(shape: tuple[int, ...], pca: bool, device: torch.device) -> Case:
    layers, tokens, dim, hidden, num = shape
    x_LTD = torch.randn(layers, tokens, dim, device=device)
    weights = autoencoders(layers, num, dim, hidden, device)
    prepared = prepare(*weights)
    if pca:
        mean_LKD, basis_LKHD = weights[3], torch.linalg.qr(weights[2]).Q.mT.contiguous()
        weights = (basis_LKHD, -(basis_LKHD @ mean_LKD[..., None])[..., 0], basis_LKHD.mT.contiguous(), mean_LKD)
        prepared = prepare_pca(mean_LKD, basis_LKHD)
    columns = num * hidden * (1 if pca else 2)
    return Case(
        f"L={layers} T={tokens} D={dim} H={hidden} K={num}{' PCA' if pca else ''}",
        partial(reference.descriptor_score, x_LTD, *weights),
        partial(descriptor_score, x_LTD, prepared),
        partial(descriptor_score, x_LTD * 1.001, prepared),
        tolerance=2e-5,
        flops=2 * layers * tokens * columns * dim,
        bytes_moved=4 * layers * (tokens * dim + columns * dim + num * tokens),
    )


def cases(device: torch.device) -> Iterator[Case]:
    for pca in (False, True):
        for shape in SHAPES:
            yield case(shape, pca, device)


if __name__ == "__main__":
    main("descriptor_score", BASELINE, cases)
