"""Which tensors of an adapter belong together: the pair of factors of one place, with its biases where it has any.

A bottleneck names them `down` and `up`, PEFT's LoRA `lora_A` and `lora_B` (its scale belongs into the shares, or folded
into `lora_B`).
"""

from collections.abc import Iterable
from typing import NamedTuple

PAIRS = (("down.weight", "up.weight"), ("lora_A.weight", "lora_B.weight"))


class Factors(NamedTuple):
    """Names: `down` is (R, I) and `up` (O, R); `bias` is (R,) between them, `output_bias` (O,) behind."""

    down: str
    up: str
    bias: str | None
    output_bias: str | None


def factors_of(names: Iterable[str]) -> list[Factors]:
    """Every place of an adapter, in the order of the names."""
    known = {*names}
    found = []
    for name in sorted(known):
        for down, up in PAIRS:
            if name.endswith(down) and (at := name.removesuffix(down)) + up in known:
                biases = (at + each.replace("weight", "bias") for each in (down, up))
                found.append(Factors(name, at + up, *(bias if bias in known else None for bias in biases)))
    return found


def is_lora(adapter: Iterable[str]) -> bool:
    """Whether nothing but a product lies between the factors: updates then are matrices."""
    return any(name.endswith("lora_A.weight") for name in adapter)
