"""What a kernel launches does not grow with what it is asked about: adapters, descriptors, permutations."""

import torch

from kernels.adapter_mixture import adapter_mixture
from kernels.descriptor_score import descriptor_score, prepare, prepare_pca
from kernels.ema import ema
from kernels.ks_sketch import fit_grid, sketch
from kernels.lowrank_merge import lowrank_merge
from kernels.merge_n import merge_n
from kernels.mmd_perm import labelings, mmd_statistics
from kernels.pack1 import pack1, unpack1
from kernels.ties import ties
from tests.kernels.test_grouped_lora import CountOps


def count(run):
    with torch.no_grad(), CountOps() as counted:
        run()
    return counted.ops


def test_adapters_of_a_mixture():
    def ops(num):
        shapes = [(3, 5, 8), (3, num), (num, 4, 8), (num, 4), (num, 8, 4), (num, 8)]
        arguments = [torch.rand(*shape) + 0.1 for shape in shapes]
        return count(lambda: adapter_mixture(*arguments))

    assert ops(2) == ops(32)  # of one adapter a transpose is a view


def test_descriptors_and_layers():
    def ops(layers, num, pca):
        shapes = [(num, 3, 8), (num, 3), (num, 8, 3), (num, 8)]
        encode, bias, decode, mean = (torch.rand(layers, *shape) for shape in shapes)
        prepared = prepare_pca(mean, encode) if pca else prepare(encode, bias, decode, mean)
        x = torch.rand(layers, 7, 8)
        return count(lambda: descriptor_score(x, prepared))

    for pca in (False, True):
        assert ops(1, 1, pca) == ops(6, 2, pca) == ops(2, 33, pca)


def test_permutations():
    def ops(permutations):
        z, member = torch.rand(24, 5), labelings(10, 14, permutations, seed=0)
        return count(lambda: mmd_statistics(z, member, 0.1))

    assert ops(2) == ops(40)


def test_merged_adapters():
    def ops(num):
        stack = torch.rand(num, 30)
        return count(lambda: merge_n(stack, torch.ones(num))), count(lambda: ties(stack, torch.ones(num), 0.5))

    assert ops(2) == ops(17)


def test_adapters_of_a_low_rank_merge():
    def ops(num):
        arguments = [torch.rand(*shape) for shape in [(num,), (num, 2, 48), (num, 40, 2)]]
        return count(lambda: lowrank_merge(*arguments, 3))

    assert ops(2) == ops(17)


def test_tensors_of_a_moving_average():
    def ops(num):
        averages, values = ([torch.rand(5) for _ in range(num)] for _ in range(2))
        return count(lambda: ema(averages, values, 0.1))

    assert ops(1) == ops(48)
    assert ops(48).total() == 1


def test_rows_of_one_bit_storage():
    def ops(rows, values):
        weight = torch.rand(rows, values)
        return count(lambda: unpack1(pack1(weight)))

    ops(1, 8)  # the table of the 256 bytes is made once
    assert ops(1, 24) == ops(64, 24) == ops(3, 800)


def test_dimensions_of_a_sketch():
    def ops(dims):
        x = torch.rand(40, dims)
        grid = fit_grid(x)
        return count(lambda: sketch(x, grid))

    assert ops(1) == ops(12)
