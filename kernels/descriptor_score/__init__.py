"""Reconstruction error of every representation descriptor on every record, and its z-score.

A descriptor is a linear autoencoder x -> V (U x + a) + c per layer (SEMA, "Self-Expansion of Pre-trained Models with
Mixture of Adapters", CVPR 2025); a closed-form one is a PCA, U = V' with orthonormal rows and a = -U c.
"""

# L layers, K descriptors, T records or tokens, D features, H hidden

from torch import Tensor

from kernels.descriptor_score import cpu
from kernels.descriptor_score.cpu import Prepared, prepare
from kernels.dispatch import runs_triton

__all__ = ["Prepared", "descriptor_score", "prepare", "prepare_pca", "prepare_quadratic", "z_scores"]


def prepare_pca(mean_LKD: Tensor, basis_LKHD: Tensor) -> Prepared:
    """Descriptors that are PCAs, with orthonormal rows in `basis`; half the work of `prepare`'s general form."""
    bias_LKH = -(basis_LKHD @ mean_LKD[..., None])[..., 0]
    return prepare(basis_LKHD, bias_LKH, basis_LKHD.mT, mean_LKD, pca=True)


def prepare_quadratic(mean_LKD: Tensor, basis_LKHD: Tensor, weight_LKH: Tensor | None = None) -> Prepared:
    """Scores (|x - mean|^2 - sum_h w_h (basis_h.(x - mean))^2) / D with w <= 1, nothing subtracted from x beforehand.

    w = 1, the default, is a PCA's reconstruction error; w = 1 - noise / spread the exponent of a probabilistic PCA
    (Tipping and Bishop, 1999) times its noise. A descriptor's columns depend on that descriptor alone.
    """
    zero_LD = mean_LKD.new_zeros(mean_LKD.shape[0], mean_LKD.shape[2])
    p_bias_LKH = -(basis_LKHD @ mean_LKD[..., None])[..., 0]
    if weight_LKH is None:
        return cpu.assemble(zero_LD, mean_LKD, basis_LKHD, p_bias_LKH)
    q_LKHD, q_bias_LKH = -weight_LKH[..., None] * basis_LKHD, -weight_LKH * p_bias_LKH
    return cpu.assemble(zero_LD, mean_LKD, basis_LKHD, p_bias_LKH, q_LKHD, q_bias_LKH)


def descriptor_score(x_LTD: Tensor, prepared: Prepared) -> Tensor:
    """Mean squared reconstruction error over features, (L, K, T), in the type of x; absolute rounding eps * |x|^2 / D.

    x: what the layers saw, in the type of the prepared tensors. On CUDA half types accumulate in float32.
    """
    if runs_triton(x_LTD, prepared.weight_LMD):
        from kernels.descriptor_score import triton  # noqa: PLC0415  # only machines with CUDA have Triton

        return triton.descriptor_score(x_LTD, prepared)
    return cpu.descriptor_score(x_LTD, prepared)


def z_scores(score_LKT: Tensor, mean_LK: Tensor, std_LK: Tensor, two_sided: bool = False) -> Tensor:
    """Scores in standard deviations above each descriptor's own mean; SEMA's code takes the absolute value."""
    z_LKT = (score_LKT - mean_LK[..., None]) / std_LK[..., None]
    return z_LKT.abs() if two_sided else z_LKT
