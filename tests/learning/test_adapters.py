"""Adapters start as exact no-ops and join the MLP where the published formula says."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tasks.learning.adapters import AdapterSpec, adapter_blocks, deltas_of, new_adapter
from tasks.learning.backbones import Backbone, load_backbone
from tasks.learning.features import features
from tests.learning.conftest import TEXT, apply_adapter, pictures, sentences


@pytest.mark.parametrize("name", ["bert", "roberta", "vit", "deit", "dinov2"])
def test_a_new_adapter_changes_no_output(folders: dict[str, Path], name: str) -> None:
    backbone = load_backbone(str(folders[name]))

    @settings(max_examples=12, deadline=None)
    @given(st.integers(1, 12), st.integers(1, 20), st.integers(1, 4), st.integers(0, 2**31))
    def check(count: int, rank: int, layers: int, seed: int) -> None:
        cut = 4 - layers
        states = backbone.encode(sentences(count, seed) if name in TEXT else pictures(count, 28, seed), cut)
        adapter = new_adapter(backbone, AdapterSpec(rank=rank, last_layers=layers), seed)
        assert adapter_blocks(adapter) == list(range(cut, 4))
        assert torch.equal(features(backbone, states, cut, adapter), features(backbone, states, cut))

    check()


@pytest.mark.parametrize("name", ["vit", "dinov2"])
def test_a_block_that_normalises_first_adds_f_of_the_residual(folders: dict[str, Path], name: str) -> None:
    backbone = load_backbone(str(folders[name]))
    adapter = _random_adapter(backbone)
    seen: list[torch.Tensor] = []
    hidden_BTD, lengths_B = torch.randn(2, 5, 32), torch.full((2,), 5)
    plain_BTD = backbone.run_blocks(
        hidden_BTD, lengths_B, 3, 4, on_block=lambda _, joint, __: seen.append(joint.residual)
    )
    adapted_BTD = backbone.run_blocks(hidden_BTD, lengths_B, 3, 4, deltas_of(adapter))
    torch.testing.assert_close(adapted_BTD, plain_BTD + apply_adapter(adapter, 3, seen[0]))


def test_a_block_that_normalises_last_adds_f_before_its_norm(bert: Backbone) -> None:
    adapter, block = _random_adapter(bert), bert.blocks[3]
    hidden_BTD = torch.randn(2, 5, 32)
    h_BTD, _ = block.attention(hidden_BTD)
    inner_BTD = block.output.dense(block.intermediate(h_BTD)) + h_BTD + apply_adapter(adapter, 3, h_BTD)
    adapted_BTD = bert.run_blocks(hidden_BTD, torch.full((2,), 5), 3, 4, deltas_of(adapter))
    torch.testing.assert_close(adapted_BTD, block.output.LayerNorm(inner_BTD))


def test_hooks_are_gone_after_a_run(vit: Backbone) -> None:
    states = vit.encode(pictures(3), 2)
    before = features(vit, states, 2)
    features(vit, states, 2, _random_adapter(vit))
    assert torch.equal(features(vit, states, 2), before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in vit.model.modules() if isinstance(m, nn.Module))


def test_a_seed_names_the_weights(vit: Backbone) -> None:
    first, again, other = (new_adapter(vit, AdapterSpec(), seed) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["blocks.3.down.weight"], other["blocks.3.down.weight"])


def test_a_spec_that_does_not_fit_is_refused(vit: Backbone) -> None:
    with pytest.raises(ValueError, match="4 blocks"):
        new_adapter(vit, AdapterSpec(last_layers=5), 0)
    with pytest.raises(ValueError, match="bottleneck"):
        new_adapter(vit, AdapterSpec(method="prefix"), 0)


def _random_adapter(backbone: Backbone) -> dict[str, torch.Tensor]:
    return {name: torch.randn_like(w) / 8 for name, w in new_adapter(backbone, AdapterSpec(last_layers=2), 0).items()}


def test_threads_that_share_a_backbone_do_not_meet(vit: Backbone) -> None:
    states = vit.encode(pictures(12), 2)
    adapters = [_random_adapter(vit) if n % 2 else None for n in range(16)]
    alone = [features(vit, states, 2, adapter) for adapter in adapters]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda adapter: features(vit, states, 2, adapter), adapters))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
