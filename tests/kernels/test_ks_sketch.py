import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp

from kernels.ks_sketch import Grid, cpu, fit_grid, ks, merge, psi, reference, remove, size, sketch


def draw(num, dims, seed=0, offset=0.0):
    return torch.randn(num, dims, generator=torch.Generator().manual_seed(seed)) + offset


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 4), st.integers(3, 50), st.integers(0, 2**31))
def test_cells_match_the_definition(num, dims, num_cells, seed):
    grid = fit_grid(draw(50, dims, seed), num_cells)
    x = draw(num, dims, seed + 1)
    assert torch.equal(sketch(x, grid).counts_DC, reference.cell_counts(x, *grid))


def test_values_just_below_an_edge_are_below_it():
    grid, x = Grid(torch.zeros(1), torch.ones(1), 5), torch.tensor([[-1e-12], [0.0], [0.99999994], [1.0], [2.9999998]])
    assert cpu.cell_counts(x, *grid).tolist() == reference.cell_counts(x, *grid).tolist() == [[1, 2, 1, 1, 0]]


@pytest.mark.parametrize("tailed", [False, True])
def test_statistic_is_scipys_up_to_the_reported_error(tailed):
    x, y = draw(3000, 6), draw(2000, 6, seed=1, offset=0.1)
    x, y = (x**3, y**3) if tailed else (x, y)
    grid = fit_grid(x)
    found = ks(sketch(x, grid), sketch(y, grid))
    for d in range(6):
        exact = ks_2samp(x[:, d].numpy(), y[:, d].numpy(), method="asymp")
        assert -1e-12 <= exact.statistic - float(found.statistic_D[d]) <= float(found.error_D[d])
        # The p-value follows the statistic, so it is as good as the cells are fine: not so for x^3, dense around 0.
        assert tailed or float(found.p_value_D[d]) == pytest.approx(exact.pvalue, rel=0.3, abs=0.01)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=5), st.integers(0, 2**31))
def test_sketches_of_parts_add_up_and_come_apart(sizes, seed):
    grid = fit_grid(draw(100, 3, seed))
    parts = [draw(num, 3, seed + i) for i, num in enumerate(sizes)]
    total = sketch(parts[0], grid)
    for part in parts[1:]:
        total = merge(total, sketch(part, grid))
    whole = sketch(torch.cat(parts), grid)
    torch.testing.assert_close(total, whole, rtol=1e-5, atol=1e-5)
    assert torch.equal(total.counts_DC, whole.counts_DC)
    assert size(total) == sum(sizes)
    assert torch.equal(remove(merge(total, whole), whole).counts_DC, whole.counts_DC)


def test_moments_are_those_of_the_sample():
    x = draw(700, 5).double()
    s = sketch(x, fit_grid(x))
    torch.testing.assert_close(s.sum_D, x.sum(0))
    torch.testing.assert_close(s.square_D, x.square().sum(0))


def test_equal_samples_do_not_differ_and_shifted_ones_do():
    x = draw(2000, 4)
    grid = fit_grid(x)
    same, shifted = ks(sketch(x, grid), sketch(x, grid)), ks(sketch(x, grid), sketch(x + 1, grid))
    assert same.statistic_D.max() == 0
    assert same.p_value_D.min() == 1
    assert shifted.p_value_D.max() < 1e-12
    assert float(psi(sketch(x, grid), sketch(x, grid)).max()) == 0
    assert float(psi(sketch(x, grid), sketch(x + 1, grid)).min()) > 0.25


def test_values_outside_the_grid_and_constant_dimensions_are_counted():
    grid = fit_grid(torch.ones(10, 2))
    counts = sketch(torch.tensor([[1.0, -9.0], [1e30, 1.0]]), grid).counts_DC
    assert counts.sum(1).tolist() == [2, 2]
    assert counts[0, -1] == 1
    assert counts[1, 0] == 1


def test_strides_and_half_types():
    x = draw(4, 60).T
    grid = fit_grid(x)
    assert torch.equal(sketch(x, grid).counts_DC, sketch(x.contiguous(), grid).counts_DC)
    assert size(sketch(x.to(torch.bfloat16), grid)) == 60
    large = 2000 + draw(60, 4).half()  # its sums are beyond float16
    assert torch.equal(fit_grid(large).low_D, fit_grid(large.float()).low_D)


def test_what_cannot_be_compared_is_refused():
    x = draw(5, 2)
    grid = fit_grid(x)
    for compare in (ks, psi):
        with pytest.raises(ValueError, match="5 and 0 records; both sketches need some"):
            compare(sketch(x, grid), remove(sketch(x, grid), sketch(x, grid)))
    with pytest.raises(ValueError, match=r"dimensions \[1\] hold values that are not finite"):
        sketch(torch.tensor([[0.0, float("nan")]]), grid)
