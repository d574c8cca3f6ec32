"""Merging methods: what each promises of its parents, and that a recipe replays to the same bytes."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.learning.adapters import AdapterWeights
from tasks.learning.merging import OPERATORS, ema, merge, recipe_of, ties
from tasks.learning.merging.dare_ties import thin
from tasks.learning.merging.ot import align

WIDTH = 6


def parent(seed: int, rank: int = 4) -> AdapterWeights:
    generator = torch.Generator().manual_seed(seed)
    sizes = {"down.weight": (rank, WIDTH), "down.bias": (rank,), "up.weight": (WIDTH, rank), "up.bias": (WIDTH,)}
    return {f"blocks.{b}.{n}": torch.randn(size, generator=generator) for b in (2, 3) for n, size in sizes.items()}


def permuted(adapter: AdapterWeights, seed: int) -> AdapterWeights:
    """The same function with its hidden units in another order."""
    order = torch.randperm(len(adapter["blocks.2.down.bias"]), generator=torch.Generator().manual_seed(seed))
    return {
        name: tensor[order] if ".down." in name else tensor[:, order] if name.endswith("up.weight") else tensor
        for name, tensor in adapter.items()
    }


def output(adapter: AdapterWeights, block: int, x_ND: torch.Tensor) -> torch.Tensor:
    at = f"blocks.{block}"
    hidden_NR = (x_ND @ adapter[f"{at}.down.weight"].mT + adapter[f"{at}.down.bias"]).relu()
    return hidden_NR @ adapter[f"{at}.up.weight"].mT + adapter[f"{at}.up.bias"]


def recipe(operator: str, count: int) -> dict[str, object]:
    return {"kind": "merged", "operator": operator, "shares": [1 / count] * count}


def lora(seed: int, rank: int = 4) -> AdapterWeights:
    generator = torch.Generator().manual_seed(seed)
    sizes = {"lora_A.weight": (rank, WIDTH), "lora_B.weight": (10, rank)}
    places = ("layers.0.q_proj", "layers.1.v_proj")
    return {f"{at}.{name}": torch.randn(size, generator=generator) for at in places for name, size in sizes.items()}


def update(adapter: AdapterWeights, at: str = "layers.0.q_proj") -> torch.Tensor:
    return adapter[f"{at}.lora_B.weight"] @ adapter[f"{at}.lora_A.weight"]


@pytest.mark.parametrize("make", [parent, lora])
@pytest.mark.parametrize("operator", OPERATORS)
def test_a_recipe_replays_to_the_same_bytes(operator: str, make: Callable[[int], AdapterWeights]) -> None:
    parents = [make(seed) for seed in (1, 2, 3)]
    first, again = merge(recipe(operator, 3), parents), merge(recipe(operator, 3), [dict(p) for p in parents])
    assert sorted(first) == sorted(parents[0])
    assert all(torch.equal(first[name], again[name]) and first[name].is_contiguous() for name in first)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(0, 1000))
def test_cat_is_the_weighted_sum_of_the_functions(count: int, seed: int) -> None:
    parents = [parent(seed + n, rank=2 + n) for n in range(count)]
    shares = torch.rand(count, generator=torch.Generator().manual_seed(seed)).tolist()
    merged = merge({"operator": "cat", "shares": shares}, parents)
    x_ND = torch.randn(7, WIDTH, generator=torch.Generator().manual_seed(seed))
    expected_ND = sum(share * output(p, 2, x_ND) for share, p in zip(shares, parents, strict=True))
    torch.testing.assert_close(output(merged, 2, x_ND), expected_ND, rtol=1e-4, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 12), st.integers(0, 1000))
def test_ot_finds_a_permutation_of_hidden_units(rank: int, seed: int) -> None:
    adapter = parent(seed, rank)
    merged = merge(recipe("ot", 2), [adapter, permuted(adapter, seed + 1)])
    for name, tensor in adapter.items():
        torch.testing.assert_close(merged[name], tensor, rtol=1e-5, atol=1e-6)


def test_linear_does_not() -> None:
    adapter = parent(1, 8)
    merged = merge(recipe("linear", 2), [adapter, permuted(adapter, 2)])
    assert not torch.allclose(merged["blocks.2.down.weight"], adapter["blocks.2.down.weight"], atol=0.1)


def test_aligning_an_adapter_of_equal_rank_leaves_its_function() -> None:
    x_ND = torch.randn(9, WIDTH, generator=torch.Generator().manual_seed(0))
    moved = align(parent(2), parent(1))
    torch.testing.assert_close(output(moved, 3, x_ND), output(parent(2), 3, x_ND), rtol=1e-4, atol=1e-5)


def test_ot_lets_one_unit_stand_for_copies_of_it() -> None:
    small = parent(1, 3)
    double = {
        name: tensor.repeat_interleave(2, 0) if ".down." in name
        else tensor.repeat_interleave(2, 1) / 2 if name.endswith("up.weight") else tensor
        for name, tensor in small.items()
    }  # fmt: skip
    merged = merge(recipe("ot", 2), [small, double])
    for name, tensor in small.items():
        torch.testing.assert_close(merged[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("operator", ["linear", "ties", "ema"])
def test_weight_by_weight_a_smaller_parent_stands_there_with_units_that_do_nothing(operator: str) -> None:
    small, large = parent(1, 3), parent(2, 5)
    filled = {name: torch.zeros_like(tensor) for name, tensor in large.items()}
    for name, tensor in small.items():
        filled[name][tuple(map(slice, tensor.shape))] = tensor
    for pair, whole in (([small, large], [filled, large]), ([large, small], [large, filled])):
        merged, expected = merge(recipe(operator, 2), pair), merge(recipe(operator, 2), whole)
        assert all(torch.equal(merged[name], expected[name]) for name in expected)


@pytest.mark.parametrize("operator", ["linear", "ties", "ema", "ot"])
def test_merging_an_adapter_with_itself_changes_nothing(operator: str) -> None:
    adapter = {name: tensor.sign() for name, tensor in parent(3).items()}  # of one magnitude: nothing is trimmed
    merged = merge(recipe(operator, 2), [adapter, adapter])
    for name, tensor in adapter.items():
        torch.testing.assert_close(merged[name], tensor)


def test_ema_stays_near_the_first_parent() -> None:
    merged = merge(recipe("ema", 2), [parent(1), parent(2)])
    expected = 0.9 * parent(1)["blocks.2.down.weight"] + 0.1 * parent(2)["blocks.2.down.weight"]
    torch.testing.assert_close(merged["blocks.2.down.weight"], expected)


def test_a_recipe_that_cannot_be_run_is_refused() -> None:
    with pytest.raises(ValueError, match="'mean'; choose one of cat, linear"):
        merge(recipe("mean", 1), [parent(1)])
    with pytest.raises(ValueError, match="same blocks"):
        merge(recipe("cat", 2), [parent(1), {}])


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 1000))
def test_svd_of_lora_is_the_best_of_its_rank(first: int, second: int, seed: int) -> None:
    parents = [lora(seed, first), lora(seed + 1, second)]
    merged = merge({"operator": "svd", "shares": [0.3, 0.7]}, parents)
    total = 0.3 * update(parents[0]) + 0.7 * update(parents[1])
    dropped = torch.linalg.svdvals(total)[first:]
    torch.testing.assert_close((update(merged) - total).norm(), dropped.norm(), rtol=1e-3, atol=1e-4)
    assert {name: t.shape for name, t in merged.items()} == {name: t.shape for name, t in parents[0].items()}


def test_lora_is_averaged_by_its_updates_unless_factors_are_asked_for() -> None:
    parents = [lora(1), lora(2)]
    total = 0.5 * update(parents[0]) + 0.5 * update(parents[1])

    def error(operator: str, **options: str) -> float:
        merged = merge({**recipe_of(operator, [0.5, 0.5]), **options}, parents)
        return float((update(merged) - total).norm() / total.norm())

    assert error("svd") < 0.6 * error("linear", on="factors")
    assert error("linear") == pytest.approx(error("svd"), rel=1e-4)
    assert error("cat") < 1e-6


@pytest.mark.parametrize("operator", ["ties", "dare_ties", "ema"])
def test_lora_of_full_rank_is_merged_as_its_dense_updates(operator: str) -> None:
    """Then nothing is cut: the product is what the method makes of the products."""
    parents = [lora(seed, WIDTH) for seed in (1, 2)]
    dense = {"a": update(parents[0])}, {"a": update(parents[1])}
    merged = update(merge(recipe_of(operator, [0.5, 0.5]), parents))
    if operator != "dare_ties":  # what drops follows from the bytes of all places
        torch.testing.assert_close(merged, merge(recipe(operator, 2), dense)["a"], rtol=1e-3, atol=1e-4)
    as_peft = update(merge({**recipe_of(operator, [0.5, 0.5]), "on": "factors"}, parents))
    assert not torch.allclose(merged, as_peft, rtol=1e-2, atol=1e-2)
    assert torch.equal(update(merge(recipe(operator, 2), parents)), as_peft), "recipes from before there was a choice"


def test_a_changed_constant_changes_no_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    parents, operators = [parent(1), parent(2)], ["ties", "dare_ties", "ema"]
    written = [recipe_of(operator, [0.5, 0.5]) for operator in operators]
    older = [recipe(operator, 2) for operator in operators]  # before they named options and dtype
    before = [merge(each, parents) for each in written]
    monkeypatch.setattr(ties, "DENSITY", 0.9)
    monkeypatch.setattr(ema, "RATE", 0.7)
    for again in (written, older):
        for first, second in zip(before, [merge(each, parents) for each in again], strict=True):
            assert all(torch.equal(first[name], second[name]) for name in first)
    now = [merge(recipe_of(operator, [0.5, 0.5]), parents) for operator in operators]
    name = "blocks.2.up.weight"
    assert not any(torch.equal(old[name], new[name]) for old, new in zip(before, now, strict=True))


def test_a_recipe_says_in_which_type_it_is_computed() -> None:
    assert recipe_of("cat", [1.0])["dtype"] == "float32"
    merged = merge({**recipe("cat", 2), "dtype": "float64"}, [parent(1), parent(2)])
    assert {tensor.dtype for tensor in merged.values()} == {torch.float64}


@pytest.mark.parametrize("density", [0.2, 0.5])
def test_dare_drops_its_share_and_scales_up_the_rest(density: float) -> None:
    whole = {"blocks.2.up.weight": torch.rand(200, 200, generator=torch.Generator().manual_seed(0)) + 1}
    left = thin(whole, density)["blocks.2.up.weight"]
    kept = left != 0
    assert abs(float(kept.float().mean()) - density) < 4 * (density * (1 - density) / 40_000) ** 0.5
    torch.testing.assert_close(left[kept], (whole["blocks.2.up.weight"] / density)[kept])


def test_svd_of_a_bottleneck_is_that_of_its_linear_part() -> None:
    parents = [parent(1, 3), parent(2, 2)]
    x_ND = torch.randn(9, WIDTH, generator=torch.Generator().manual_seed(0))
    merged = merge(recipe("svd", 2), parents)
    assert merged["blocks.2.down.weight"].shape == (3, WIDTH)

    def linear(adapter: AdapterWeights) -> torch.Tensor:
        hidden_NR = x_ND @ adapter["blocks.2.down.weight"].mT + adapter["blocks.2.down.bias"]
        return hidden_NR @ adapter["blocks.2.up.weight"].mT + adapter["blocks.2.up.bias"]

    alone = merge(recipe("svd", 1), [parents[0]])
    torch.testing.assert_close(linear(alone), linear(parents[0]), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(output(alone, 2, x_ND), output(parents[0], 2, x_ND), atol=0.1)
