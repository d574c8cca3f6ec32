"""One matrix-vector product over the flattened slots: every value is read once."""

# N adapters, P values of each

from torch import Tensor


def merge_n(stack_N: Tensor, weight_N: Tensor) -> Tensor:
    return (weight_N @ stack_N.reshape(len(stack_N), -1)).view(stack_N.shape[1:])
