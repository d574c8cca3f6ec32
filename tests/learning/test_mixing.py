"""A mixture as one set of tensors: what grows, what is left alone, and that a record's answer is its own."""

from dataclasses import replace

import pytest
import torch

from registry.errors import BadWeightsError
from tasks.learning.adapters import AdapterSpec, AdapterWeights, check_weights, deltas_of
from tasks.learning.backbones import Backbone
from tasks.learning.banks import stacked
from tasks.learning.composition import AdapterEntry, ServingModel, compose, predict, predict_each
from tasks.learning.descriptors import fit_descriptor
from tasks.learning.features import run_from, run_suffix
from tasks.learning.heads import class_statistics
from tasks.learning.loops import Descent
from tasks.learning.mixing import (
    Rows,
    describe_shard,
    grow_mixture,
    looks_from_tensors,
    looks_to_tensors,
    scan_mixture,
)
from tasks.learning.sema import SemaOptions
from tests.learning.conftest import sentences, shard

CUT, HELD_OUT = 1, (0, 3, 6, 9, 12)
OPTIONS = SemaOptions(
    descent=Descent(epochs=2, learning_rate=0.05, minibatch=4),
    watched=2,
    rank=4,
    descriptor_rank=3,
    threshold=-1e9,
    spare_held_out=True,
)


def rows_of(backbone: Backbone, number: int, classes: str) -> Rows:
    return Rows(*shard(backbone, number, classes, CUT), HELD_OUT)


def grow(backbone: Backbone, mixture: AdapterWeights, rows: Rows, blocks=None, options=OPTIONS, looks=None):
    return grow_mixture(backbone, CUT, options, mixture, looks or {}, rows, 7, blocks)


@pytest.fixture(scope="module")
def grown(vit: Backbone) -> tuple[AdapterWeights, AdapterWeights]:
    """The mixture after one shard, and after a second that grew blocks 2 and 3."""
    first, scan = grow(vit, {}, rows_of(vit, 0, "ab"))
    assert scan.expanded == (1, 2, 3)
    second, scan = grow(vit, first, rows_of(vit, 1, "cd"), (2, 3))
    assert scan.expanded == (2, 3)
    return first, second


def test_a_shard_grows_columns_beside_those_that_stay_as_they_are(vit: Backbone, grown) -> None:
    first, second = grown
    assert [len(second[f"blocks.{block}.router.bias"]) for block in (1, 2, 3)] == [1, 2, 2]
    assert all(torch.equal(second[name][:1], first[name]) for name in first)
    check_weights(second, range(1, 4), vit.width, "this mixture")
    with pytest.raises(BadWeightsError, match=r"1 tensors are missing or strange, first blocks\.1\.up\.bias"):
        check_weights({n: t for n, t in second.items() if n != "blocks.1.up.bias"}, range(1, 4), vit.width, "it")
    bad = {**second, "blocks.2.router.weight": second["blocks.2.router.weight"][:1]}
    with pytest.raises(BadWeightsError, match=r"blocks\.2\.router\.weight is"):
        check_weights(bad, range(1, 4), vit.width, "it")


def test_recorded_blocks_grow_the_same_bytes_as_the_scan_that_found_them(vit: Backbone, grown) -> None:
    first, second = grown
    described = describe_shard(vit, CUT, OPTIONS, first, rows_of(vit, 0, "ab"), (1, 2, 3))
    scanned, scan = grow(vit, first, rows_of(vit, 1, "cd"), looks={b: [d] for b, d in described.items()})
    assert scan.expanded == (2, 3)
    assert all(torch.equal(scanned[name], second[name]) for name in second)


def test_a_block_without_a_look_explains_nothing(vit: Backbone, grown) -> None:
    first, _ = grown
    rows = rows_of(vit, 1, "cd")
    never = replace(OPTIONS, threshold=1e9)
    assert grow(vit, first, rows, options=never)[1].expanded == (2, 3)
    described = describe_shard(vit, CUT, never, first, rows_of(vit, 0, "ab"), (1, 2, 3))
    looks = looks_from_tensors(looks_to_tensors({block: [each] for block, each in described.items()}))
    assert sorted(looks) == [2, 3]
    assert grow(vit, first, rows, options=never, looks=looks)[1].expanded == ()


def test_held_out_rows_train_nothing_and_scale_the_looks(vit: Backbone, grown) -> None:
    first, _ = grown
    rows = rows_of(vit, 0, "ab")
    other = rows_of(vit, 5, "ab")
    swapped = [other.states[i] if i in HELD_OUT else state for i, state in enumerate(rows.states)]
    again, _ = grow(vit, {}, replace(rows, states=swapped))
    assert all(torch.equal(again[name], first[name]) for name in first)
    described = describe_shard(vit, CUT, OPTIONS, first, rows, (1, 2, 3))
    looks = {block: [each] for block, each in described.items()}
    shifts = scan_mixture(vit, CUT, OPTIONS, first, looks, [rows.states[i] for i in HELD_OUT])
    assert [shift.least for shift in shifts.values()] == pytest.approx([0, 0], abs=1e-4)


def test_a_mixture_answers_a_record_alone_as_in_company(vit: Backbone, bert: Backbone, grown) -> None:
    """Also a text, whose router must not see the padding that its company brings."""
    torch.manual_seed(1)
    for backbone, states in (
        (vit, rows_of(vit, 3, "ab").states),
        (bert, bert.encode(sentences(16, seed=3), CUT)),
    ):
        mixture = {name: torch.randn_like(tensor) / 4 for name, tensor in grown[1].items()}
        frozen = run_suffix(backbone, states, CUT, keep_starts=True)
        whole_NF = run_suffix(backbone, states, CUT, mixture).features_NF
        assert torch.equal(run_from(backbone, frozen.starts, CUT, mixture), whole_NF)
        for n in range(0, 16, 5):
            assert torch.equal(run_suffix(backbone, states[n : n + 1], CUT, mixture).features_NF[0], whole_NF[n])
        assert not torch.equal(whole_NF, frozen.features_NF)
        far = {n: t * 1e4 if ".router." in n else t for n, t in mixture.items()}  # shares of exactly 0 and 1
        far_NF = run_suffix(backbone, states, CUT, far).features_NF
        assert torch.equal(run_suffix(backbone, states[5:6], CUT, far).features_NF[0], far_NF[5])


def test_padding_takes_no_part_in_the_router(bert: Backbone, grown) -> None:
    states = bert.encode(sentences(8, seed=4), CUT)
    mixture = {name: torch.randn_like(tensor) for name, tensor in grown[1].items()}
    deltas, pooled = deltas_of(mixture), []
    for padded in (40, 64):
        hidden_BTD, lengths_B = bert.pad(states, padded, len(states))
        with torch.inference_mode():
            out_BTD = bert.run_blocks(hidden_BTD, lengths_B, CUT, bert.num_blocks, deltas)
        pooled.append(bert.pool(out_BTD, lengths_B))
    torch.testing.assert_close(*pooled)


def model_of(backbone: Backbone, mixtures: dict[str, AdapterWeights]) -> ServingModel:
    frozen, entries = {}, []
    for number, (group, mixture) in enumerate(mixtures.items()):
        states, labels = shard(backbone, number, {"a": "ab", "b": "cd"}[group], CUT)
        seen = run_suffix(backbone, states, CUT)
        own = class_statistics(seen.features_NF, labels)
        look = fit_descriptor(seen.signatures_LND[:, ::2], seen.signatures_LND[:, 1::2], 3)
        under = class_statistics(run_suffix(backbone, states, CUT, mixture).features_NF, labels)
        frozen[group] = (own,)
        entries.append(AdapterEntry(f"{group}1", group, mixture, look, (under,), (own,)))
    return ServingModel(CUT, AdapterSpec(), frozen, tuple(entries))


def test_what_another_groups_mixture_holds_moves_no_bit(vit: Backbone, grown) -> None:
    """NaN, random values, or nothing in its place; in a minibatch that its own callers share."""
    mixtures = {"a": grown[1], "b": {n: t * 1.5 for n, t in grown[1].items()}}
    states = rows_of(vit, 0, "ab").states
    clean = predict(vit, compose(model_of(vit, mixtures), {"a"}), states)
    assert set(clean.adapter_ids) == {"a1"}
    torch.manual_seed(2)
    spoilt = [
        {**mixtures, "b": {n: torch.full_like(t, torch.nan) for n, t in mixtures["b"].items()}},
        {**mixtures, "b": {n: torch.randn_like(t) for n, t in mixtures["b"].items()}},
    ]
    model = model_of(vit, mixtures)
    for weights in spoilt:
        changed = replace(model, adapters=tuple(replace(e, weights=weights[e.group]) for e in model.adapters))
        composed = compose(changed, {"a"})
        other = replace(compose(model, {"a", "b"}), bank=composed.bank)
        for found in (predict(vit, composed, states), predict_each(vit, [(composed, states), (other, states)])[0]):
            assert torch.equal(found.scores_NC, clean.scores_NC)
    absent = compose(model_of(vit, {"a": mixtures["a"]}), {"a"})
    assert torch.equal(predict(vit, absent, states).scores_NC, clean.scores_NC)


def test_a_bank_holds_mixtures_beside_adapters(grown) -> None:
    bank = stacked({"m": grown[1]})
    assert "m" in bank
    assert bank.bytes() == sum(t.nbytes for t in grown[1].values())
    held = bank.read("m")
    bank.erase("m")
    assert "m" not in bank
    assert not any(bool(t.any()) for t in held.values())
