"""The bank answers as the adapters do one by one, to the bit, in any company."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.learning.adapters import AdapterSpec, AdapterWeights, new_adapter
from tasks.learning.backbones import Backbone, load_backbone
from tasks.learning.banks import AdapterBank, stacked
from tasks.learning.descriptors import fit_descriptor, shift_and_density, side_by_side, z_scores
from tasks.learning.features import features, run_suffix
from tests.kernels.test_grouped_lora import CountOps
from tests.learning.conftest import pictures, sentences

CUT = 1


def random_adapter(backbone: Backbone, seed: int, rank: int = 4) -> AdapterWeights:
    generator = torch.Generator().manual_seed(seed)
    blank = new_adapter(backbone, AdapterSpec(rank=rank, last_layers=3), seed)
    return {name: torch.randn(tensor.shape, generator=generator) / 8 for name, tensor in blank.items()}


def encoded(backbone: Backbone, count: int, seed: int = 0) -> list[torch.Tensor]:
    inputs = sentences(count, seed) if backbone.modality == "text" else pictures(count, 28, seed)
    return backbone.encode(inputs, CUT)


@pytest.mark.parametrize("name", ["bert", "distilbert", "vit", "dinov2"])
def test_a_mixed_pass_gives_the_bytes_of_each_adapter_alone(folders: dict[str, Path], name: str) -> None:
    backbone = load_backbone(str(folders[name]))
    states = encoded(backbone, 21)
    adapters = {f"a{k}": random_adapter(backbone, k, rank=4 if k < 3 else 9) for k in range(5)}
    pairs = [(i, f"a{k}") for i in range(21) for k in range(5) if (i + k) % 3]
    starts = run_suffix(backbone, states, CUT, keep_starts=True).starts
    mixed_PF = stacked(adapters).features(backbone, starts, CUT, pairs)
    alone = {adapter_id: features(backbone, states, CUT, weights) for adapter_id, weights in adapters.items()}
    assert torch.equal(mixed_PF, torch.stack([alone[adapter_id][i] for i, adapter_id in pairs]))


def test_the_first_block_of_a_record_runs_once_for_all_adapters(vit: Backbone) -> None:
    states = encoded(vit, 3)
    bank = stacked({f"a{k}": random_adapter(vit, k) for k in range(4)})
    before = vit.work.forwards
    starts = run_suffix(vit, states, CUT, stop=CUT + 1, keep_starts=True).starts
    bank.features(vit, starts, CUT, [(i, f"a{k}") for i in range(3) for k in range(4)])
    assert vit.work.forwards - before == 3 * 1 + 3 * 4 * 2


def test_operations_of_a_mixed_pass_do_not_depend_on_the_number_of_adapters(vit: Backbone) -> None:
    states = encoded(vit, 16)
    starts = run_suffix(vit, states, CUT, keep_starts=True).starts

    def ops(num: int) -> dict[str, int]:
        bank = stacked({f"a{k}": random_adapter(vit, k) for k in range(num)})
        with CountOps() as counted:
            bank.features(vit, starts, CUT, [(i, f"a{i % num}") for i in range(16)])
        return dict(counted.ops)

    assert ops(2) == ops(16)


def test_an_adapter_that_is_not_in_the_bank_gives_no_features(vit: Backbone) -> None:
    bank = stacked({"kept": random_adapter(vit, 0), "gone": random_adapter(vit, 1)})
    bank.erase("gone")
    starts = run_suffix(vit, encoded(vit, 1), CUT, keep_starts=True).starts
    with pytest.raises(KeyError, match="gone"):
        bank.features(vit, starts, CUT, [(0, "kept"), (0, "gone")])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9), st.booleans()), min_size=1, max_size=20))
def test_a_bank_holds_what_was_written_last(steps: list[tuple[int, int, bool]]) -> None:
    bank, expected = AdapterBank(), {}
    for name, seed, erased in steps:
        weights = {
            "blocks.0.down.bias": torch.full((1 + seed % 2,), float(seed)),
            "blocks.0.up.weight": torch.full((3, 1 + seed % 2), float(seed)),
        }
        if erased and f"a{name}" in bank:
            bank.erase(f"a{name}")
            del expected[f"a{name}"]
        else:
            bank.write(f"a{name}", weights)
            expected[f"a{name}"] = weights
    assert all((f"a{n}" in bank) == (f"a{n}" in expected) for n in range(6))
    for adapter_id, weights in expected.items():
        assert all(torch.equal(bank.read(adapter_id)[name], tensor) for name, tensor in weights.items())


def test_descriptors_side_by_side_score_as_each_alone_whatever_stands_beside_them() -> None:
    generator = torch.Generator().manual_seed(0)

    def rows(count: int, scale: float = 1.0) -> torch.Tensor:
        return torch.randn(2, count, 40, generator=generator) * scale

    all_of_them = [fit_descriptor(rows(30, 1 + k / 9), rows(20), rank=5 + k % 3) for k in range(19)]
    signatures_LND = rows(37)
    z_KN, density_KN = shift_and_density(side_by_side(all_of_them), signatures_LND)
    expected_KN = torch.stack([z_scores(each, signatures_LND).mean(0) for each in all_of_them])
    torch.testing.assert_close(z_KN, expected_KN, rtol=1e-4, atol=1e-4)
    fewer_z, fewer_density = shift_and_density(side_by_side(all_of_them[3:8]), signatures_LND[:, 5:])
    assert torch.equal(fewer_z, z_KN[3:8, 5:])
    assert torch.equal(fewer_density, density_KN[3:8, 5:])


def test_the_density_is_that_of_the_probabilistic_pca() -> None:
    generator = torch.Generator().manual_seed(1)
    one = fit_descriptor(*(torch.randn(1, n, 12, generator=generator) for n in (40, 30)), rank=3)
    x_ND = torch.randn(5, 12, generator=generator)
    basis_RD = one.basis_LRD[0]
    outside_DD = torch.eye(12) - basis_RD.mT @ basis_RD
    covariance_DD = basis_RD.mT @ torch.diag(one.spread_LR[0]) @ basis_RD + one.noise_L[0] * outside_DD
    normal = torch.distributions.MultivariateNormal(one.mean_LD[0], covariance_DD)
    constant = 12 * torch.log(torch.tensor(2 * torch.pi)) / 2
    expected_N = (normal.log_prob(x_ND) + constant) / 12
    _, density_KN = shift_and_density(side_by_side([one]), x_ND[None])
    torch.testing.assert_close(density_KN[0], expected_N, rtol=1e-4, atol=1e-4)
