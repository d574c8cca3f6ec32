"""Adapters in fewer bytes: what is stored is what serves, so every figure is measured on the weights as they come back.

Scales are per hidden unit: a row of the down-projection, a column of the up-projection. Laying the units of several
adapters side by side (`cat`) therefore changes no unit. Published source of one bit: Jie, Wang and Deng, Revisiting the
Parameter Efficiency of Adapters from the Perspective of Precision Redundancy (ICCV 2023).
"""

# K rows (hidden units), M values

import json
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from kernels.pack1 import Packed, pack1, unpack1
from tasks.learning.adapters import AdapterWeights, is_outwards

PRECISIONS = ("1bit", "int8", "bf16", "fp32")
"""Smallest first."""
LAYOUT, SHAPES = "layout", "shapes"
KEPT = ".kept"
"""Of a tensor stored without its zeros: which values are not zero, a bit each."""


def compress(weights: Mapping[str, Tensor], precision: str, pruned: bool = False) -> dict[str, Tensor]:
    """The tensors to store: as they are, as bfloat16, or packed with a scale per unit. Biases keep eight bits at least.

    Of `pruned` weights the zeros are left out. Raises ValueError for an unknown precision, and for pruned weights in
    one bit, which knows no zero.
    """
    if pruned:
        if precision == "1bit":
            raise ValueError("pruned weights cannot be stored as 1bit, which knows signs alone; use int8, bf16 or fp32")
        return _without_zeros(compress(weights, precision))
    if precision == "fp32":
        return dict(weights)
    if precision == "bf16":
        return {name: tensor.bfloat16() for name, tensor in weights.items()}
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r}: use {', '.join(PRECISIONS)}")
    names = sorted(weights)
    rows = {name: _units_first(name, weights[name].float()) for name in names}
    packed = [pack1(rows[name]) for name in names if _in_bits(weights[name], precision)]
    coded = [_to_int8(rows[name]) for name in names if not _in_bits(weights[name], precision)]
    layout = {"precision": precision, SHAPES: {name: list(weights[name].shape) for name in names}}
    return {
        LAYOUT: _text(json.dumps(layout, separators=(",", ":"))),
        "bits": torch.cat([each.bits_KB.flatten() for each in packed] or [torch.zeros(0, dtype=torch.uint8)]),
        "codes": torch.cat([codes.flatten() for codes, _ in coded] or [torch.zeros(0, dtype=torch.int8)]),
        "scales": torch.cat([each.scale_K for each in packed] + [scale_K for _, scale_K in coded]),
    }


def decompress(stored: Mapping[str, Tensor]) -> AdapterWeights:
    """The weights that serve, float32; tensors that were stored whole come back as they are."""
    if SHAPES in stored:
        stored = _with_zeros(stored)
    if LAYOUT not in stored:
        return {name: tensor.float() for name, tensor in stored.items()}
    layout = json.loads(stored[LAYOUT].numpy().tobytes())
    taken = {"bits": 0, "codes": 0, "scales": 0}

    def take(kind: str, count: int) -> Tensor:
        taken[kind] += count
        return stored[kind][taken[kind] - count : taken[kind]]

    shapes = {name: torch.Size(shape) for name, shape in layout[SHAPES].items()}
    in_bits = {name: len(shape) > 1 and layout["precision"] == "1bit" for name, shape in shapes.items()}
    weights = {}
    for name in sorted(shapes, key=lambda name: (not in_bits[name], name)):
        rows, values = _rows_and_values(name, shapes[name])
        if in_bits[name]:
            bits_KB = take("bits", rows * -(-values // 8)).view(rows, -1)
            rows_KM = unpack1(Packed(bits_KB, take("scales", rows), values))
        else:
            rows_KM = take("codes", rows * values).view(rows, values).float() * take("scales", rows)[:, None]
        weights[name] = (rows_KM.mT if is_outwards(name) else rows_KM).reshape(shapes[name]).contiguous()
    return {name: weights[name] for name in sorted(weights)}


def _without_zeros(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Where that is less: a bit for every place and the values that are not zero."""
    left, shapes = dict(stored), {}
    for name, tensor in stored.items():
        kept, values = tensor.flatten() != 0, tensor[tensor != 0]
        bits = torch.from_numpy(np.packbits(kept.numpy()))
        if name != LAYOUT and bits.numel() + values.numel() * tensor.itemsize < tensor.numel() * tensor.itemsize:
            left[name], left[name + KEPT], shapes[name] = values, bits, list(tensor.shape)
    return {**left, SHAPES: _text(json.dumps(shapes, sort_keys=True, separators=(",", ":")))}


def _with_zeros(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    whole = {name: tensor for name, tensor in stored.items() if name != SHAPES and not name.endswith(KEPT)}
    for name, shape in json.loads(stored[SHAPES].numpy().tobytes()).items():
        full = torch.zeros(shape, dtype=stored[name].dtype).flatten()
        kept = np.unpackbits(stored[name + KEPT].numpy(), count=len(full)).astype(bool)
        full[torch.from_numpy(kept)] = stored[name]
        whole[name] = full.view(shape)
    return whole


def num_units(weights: Mapping[str, Tensor]) -> int:
    """The rank of an adapter, or of each adapter of a mixture."""
    return next(t.shape[-1] for name, t in weights.items() if is_outwards(name))


def _in_bits(tensor: Tensor, precision: str) -> bool:
    return precision == "1bit" and tensor.dim() > 1


def _units_first(name: str, tensor: Tensor) -> Tensor:
    """(K, M): a unit a row; a bias is one row."""
    if tensor.dim() == 1:
        return tensor[None]
    return tensor.mT.contiguous() if is_outwards(name) else tensor


def _rows_and_values(name: str, shape: torch.Size) -> tuple[int, int]:
    if len(shape) == 1:
        return 1, shape[0]
    return (shape[1], shape[0]) if is_outwards(name) else (shape[0], shape[1])


def _to_int8(rows_KM: Tensor) -> tuple[Tensor, Tensor]:
    scale_K = (rows_KM.abs().amax(1) / 127).clamp_min(torch.finfo(torch.float32).tiny)
    return (rows_KM / scale_K[:, None]).round().to(torch.int8), scale_K


def _text(value: str) -> Tensor:
    return torch.from_numpy(np.frombuffer(value.encode(), dtype=np.uint8).copy())
