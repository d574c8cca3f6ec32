import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.lowrank_merge import lowrank_merge, reference

SIZES = st.integers(1, 12)


def adapters(num, rank, num_in, num_out, seed=0, dtype=torch.float64):
    draw = torch.Generator().manual_seed(seed)
    return (
        torch.randn(*shape, generator=draw, dtype=dtype)
        for shape in [(num,), (num, rank, num_in), (num, num_out, rank)]
    )


@settings(max_examples=60, deadline=None)
@given(num=SIZES, rank=SIZES, num_in=SIZES, num_out=SIZES, seed=st.integers(0, 2**31), data=st.data())
def test_merge_is_as_close_as_the_dense_decomposition(num, rank, num_in, num_out, seed, data):
    target = data.draw(st.integers(1, min(num_in, num_out)))
    weight, A, B = adapters(num, rank, num_in, num_out, seed)
    dense = torch.einsum("n,nor,nri->oi", weight, B, A)
    best_A, best_B = reference.lowrank_merge(weight, A, B, target)
    merged_A, merged_B = lowrank_merge(weight, A, B, target)
    assert merged_A.shape == (target, num_in)
    assert merged_B.shape == (num_out, target)
    error, best = (torch.linalg.norm(dense - b @ a) for a, b in [(merged_A, merged_B), (best_A, best_B)])
    torch.testing.assert_close(error, best, rtol=1e-6, atol=1e-7 * float(torch.linalg.norm(dense)) + 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_full_rank_loses_nothing(dtype):
    weight, A, B = adapters(3, 4, 33, 21, dtype=dtype)
    merged_A, merged_B = lowrank_merge(weight, A, B, 12)
    torch.testing.assert_close(merged_B @ merged_A, torch.einsum("n,nor,nri->oi", weight, B, A), rtol=1e-4, atol=1e-4)


def test_one_adapter_merges_into_itself():
    _, A, B = adapters(1, 3, 9, 7)
    merged_A, merged_B = lowrank_merge(torch.ones(1, dtype=A.dtype), A, B, 5)
    torch.testing.assert_close(merged_B @ merged_A, B[0] @ A[0])


def test_adapters_that_cancel_leave_nothing():
    _, A, B = adapters(1, 3, 9, 7)
    merged_A, merged_B = lowrank_merge(torch.tensor([1.0, -1.0]), A.repeat(2, 1, 1), B.repeat(2, 1, 1), 3)
    assert float((merged_B @ merged_A).abs().max()) < 1e-12


def test_rows_are_orthonormal_with_a_fixed_sign():
    weight, A, B = adapters(2, 3, 9, 7)
    merged_A, _ = lowrank_merge(weight, A, B, 4)
    torch.testing.assert_close(merged_A @ merged_A.T, torch.eye(4, dtype=A.dtype))
    assert bool((merged_A.gather(1, merged_A.abs().argmax(1, keepdim=True)) > 0).all())
    again_A, _ = lowrank_merge(weight.flip(0), A.flip(0), B.flip(0), 4)
    torch.testing.assert_close(again_A, merged_A)


def test_half_types_and_strides():
    weight, A, B = (t.to(torch.bfloat16) for t in adapters(2, 4, 8, 6))
    merged_A, merged_B = lowrank_merge(weight, A.mT.contiguous().mT, B, 6)
    assert merged_A.dtype == merged_B.dtype == torch.bfloat16
    torch.testing.assert_close(merged_B @ merged_A, torch.einsum("n,nor,nri->oi", weight, B, A), rtol=0.05, atol=0.1)


@pytest.mark.parametrize("rank", [0, 7])
def test_impossible_rank_is_refused(rank):
    with pytest.raises(ValueError, match=rf"rank {rank} of a 6 x 8 update; choose 1\.\.6"):
        lowrank_merge(*adapters(2, 4, 8, 6), rank)
