import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.mmd_perm import default_gamma, labelings, mmd_statistics, mmd_test, reference


@pytest.mark.parametrize(
    ("n", "m", "dim", "permutations"), [(2, 2, 1, 0), (3, 40, 5, 7), (400, 2, 5, 7), (130, 137, 33, 9)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tiles_match_the_definition(generator, n, m, dim, permutations, dtype):
    z = torch.randn(n + m, dim, generator=generator, dtype=dtype)
    member = labelings(n, m, permutations, seed=1).to(dtype)
    expected = reference.mmd_statistics(z, member, 0.5 / dim)
    tolerance = 1e-12 if dtype == torch.float64 else 3e-6
    torch.testing.assert_close(mmd_statistics(z, member, 0.5 / dim), expected, rtol=0, atol=tolerance)


def test_strides_do_not_matter(generator):
    z = torch.randn(9, 40, generator=generator).T[::2]
    member = labelings(8, 12, 5, seed=0)
    torch.testing.assert_close(mmd_statistics(z, member, 0.1), mmd_statistics(z.contiguous(), member, 0.1))


def test_a_large_common_offset_costs_no_digits(generator):
    z = torch.randn(60, 8, generator=generator)
    member = labelings(30, 30, 5, seed=0)
    expected = reference.mmd_statistics(z + 100, member, 0.1)
    torch.testing.assert_close(mmd_statistics(z + 100, member, 0.1), expected, rtol=0, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(2, 20), m=st.integers(2, 20), permutations=st.integers(1, 30), seed=st.integers(0, 2**31))
def test_p_value_is_never_zero_and_never_above_one(n, m, permutations, seed):
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(n, 3, generator=generator), 50 + torch.randn(m, 3, generator=generator)
    test = mmd_test(x, y, permutations, seed)
    assert 1 / (permutations + 1) <= test.p_value <= 1


def test_equal_records_tie_with_every_labeling():
    assert mmd_test(torch.ones(6, 3), torch.ones(9, 3), 20).p_value == 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_decides_no_tie(generator, dtype):
    for seed in range(6):
        x, y = (torch.randint(0, 2, (n, 1), generator=generator).to(dtype) for n in (30, 30))
        z, member = torch.cat([x, y]), labelings(30, 30, 49, seed)
        exact = reference.mmd_statistics(z, member, default_gamma(z))
        reached = int((exact[1:] >= exact[0] - 1e-12).sum())
        assert mmd_test(x, y, 49, seed).p_value == (reached + 1) / 50


def test_level_holds_without_shift_and_power_with_it(generator):
    def rejections(offset: float) -> int:
        draws = [torch.randn(2, 20, 4, generator=generator) for _ in range(100)]
        return sum(mmd_test(x, y + offset, 39, seed).p_value <= 0.05 for seed, (x, y) in enumerate(draws))

    assert rejections(0.0) <= 12  # binomial(100, 0.05): above with probability 0.001
    assert rejections(1.0) >= 95


def test_gamma_does_not_depend_on_the_order_of_records(generator):
    z = torch.randn(31, 5, generator=generator)
    assert default_gamma(z) == pytest.approx(default_gamma(z.flip(0)))
    assert default_gamma(torch.ones(4, 2)) == 1.0


@pytest.mark.parametrize("bad", [torch.full((3, 2), float("nan")), torch.zeros(1, 2)])
def test_unusable_records_are_refused(bad):
    with pytest.raises(ValueError, match="MMD"):
        mmd_test(bad, torch.zeros(5, 2), 9)


@pytest.mark.parametrize("num", [2, 3, 40, 41])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_width_comes_from_the_median_record(generator, num, dtype):
    z = torch.randn(7, num, generator=generator, dtype=dtype).T
    distances = (z - z.median(0).values).square().sum(1).double()
    assert default_gamma(z) == 1 / float(2 * distances.median())
