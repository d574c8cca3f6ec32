"""Descriptors: the closed form is what SGD would reach, and nothing unusual passes silently."""

import pytest
import torch
from torch.nn.functional import layer_norm

from tasks.learning.composition import visiting_shares
from tasks.learning.descriptors import Descriptor, fit_descriptor, principal_directions, side_by_side, z_scores
from tasks.learning.tensors import NonFiniteError


def rows(count: int, seed: int, shift: float = 0.0, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    spread_D = torch.linspace(2, 0.1, 12)
    return torch.randn(2, count, 12, generator=generator) * spread_D * scale + shift


def test_the_autoencoder_trained_by_sgd_reaches_the_closed_form() -> None:
    train_ND = rows(300, 1)[0]
    mean_LD, basis_LRD = principal_directions(train_ND[None], rank=4)
    centred_ND = train_ND - mean_LD[0]
    closed = (centred_ND - centred_ND @ basis_LRD[0].T @ basis_LRD[0]).square().mean()
    torch.manual_seed(0)
    coder = torch.nn.Sequential(torch.nn.Linear(12, 4), torch.nn.Linear(4, 12))
    optimizer = torch.optim.SGD(coder.parameters(), lr=0.1, momentum=0.9)
    for _ in range(1500):
        loss = (coder(train_ND) - train_ND).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert closed <= loss.detach() + 1e-6
    assert loss.detach() < closed * 1.01


def test_rows_of_the_shard_score_near_zero_and_strangers_high() -> None:
    descriptor = fit_descriptor(rows(300, 1), rows(200, 2), rank=4)
    assert z_scores(descriptor, rows(200, 3)).mean().abs() < 0.2
    assert z_scores(descriptor, rows(200, 4, scale=2)).mean() > 2


def test_one_side_sees_only_more_error_and_two_sides_see_less_as_well() -> None:
    descriptor = fit_descriptor(rows(300, 1), rows(200, 2), rank=4)
    quiet = rows(200, 5, scale=0.1)
    assert z_scores(descriptor, quiet).mean() < 0
    assert z_scores(descriptor, quiet, two_sided=True).mean() > 1


def test_a_descriptor_survives_its_tensors() -> None:
    descriptor = fit_descriptor(rows(50, 1), rows(50, 2))
    again = Descriptor.from_tensors(descriptor.to_tensors())
    assert torch.equal(z_scores(again, rows(9, 3)), z_scores(descriptor, rows(9, 3)))


@pytest.mark.parametrize("strangers", [0, 40])
def test_a_shard_whose_rows_are_all_alike_knows_them(strangers: int) -> None:
    """Their score has no deviation, and what rounding leaves of it is none."""
    drawn_LND = torch.randn(2, strangers + 1, 384, generator=torch.Generator().manual_seed(0))
    drawn_LND = layer_norm(drawn_LND, (384,))
    alike_LND = drawn_LND[:, :1].repeat(1, 10, 1)
    descriptor = fit_descriptor(drawn_LND[:, 1:] if strangers else alike_LND, alike_LND)
    assert z_scores(descriptor, alike_LND).abs().max() < 1
    assert visiting_shares(side_by_side([descriptor]), alike_LND).min() == 1


def test_non_finite_values_are_an_error() -> None:
    broken = rows(50, 1)
    broken[0, 3, 2] = torch.nan
    with pytest.raises(NonFiniteError, match="training rows"):
        fit_descriptor(broken, rows(50, 2))
    with pytest.raises(NonFiniteError, match="z-scores"):
        z_scores(fit_descriptor(rows(50, 1), rows(50, 2)), broken)
