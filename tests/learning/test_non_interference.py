"""What a caller may not use cannot change a bit of what the caller gets: 10,000 generated cases with those of the
language model (test_language_non_interference.py), some hundreds of them in every run."""

import random
from collections.abc import Iterable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tasks.learning import heads
from tasks.learning.adapters import AdapterSpec, AdapterWeights, new_adapter
from tasks.learning.backbones import Backbone
from tasks.learning.banks import stacked
from tasks.learning.composition import (
    AdapterEntry,
    Composed,
    KnownLook,
    Passes,
    Prediction,
    ServingModel,
    compose,
    predict_each,
    run_adapted,
)
from tasks.learning.descriptors import Descriptor, fit_descriptor
from tasks.learning.features import SuffixPass, run_suffix
from tasks.learning.heads import ClassStatistics, class_statistics
from tasks.learning.router import Mixture
from tests.learning.conftest import pictures

SPEC, CUT = AdapterSpec(rank=4, last_layers=2), 2
GROUPS = ("red", "blue", "green", "gold", "grey")
LONG = [pytest.mark.services, pytest.mark.timeout(3600)]
MOST_ROWS, MOST_OTHERS = 16, 3
CASES = {"retrieve": (200, 6_000), "mix": (100, 3_700)}
"""In every run, and where servers are started too: with 300 of the language model 10,000 in all."""


@pytest.fixture(scope="module")
def small_heads() -> None:
    """Few random features: every draw solves its heads anew, which is most of the time otherwise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heads, "RANDOM_FEATURES", 16)
        heads._projection.cache_clear()
        yield
    heads._projection.cache_clear()


@pytest.fixture(scope="module")
def pool(vit: Backbone) -> SuffixPass:
    """The frozen pass of every record, run once: no adapter takes part in it."""
    looks = [image // (1 + 2 * n) for n in range(len(GROUPS)) for image in pictures(24, seed=n)]
    return run_suffix(vit, vit.encode(looks, CUT), CUT, keep_starts=True)


def new_weights(backbone: Backbone, composition: str, number: int) -> AdapterWeights:
    """An adapter, or a mixture of one to three in every block of the suffix."""
    generator = torch.Generator().manual_seed(number)

    def drawn(seed: int) -> AdapterWeights:
        blank = new_adapter(backbone, SPEC, seed)
        return {name: torch.randn(t.shape, generator=generator) / 8 for name, t in blank.items()}

    if composition == "retrieve":
        return drawn(number)
    found: AdapterWeights = {}
    for block in range(CUT, backbone.num_blocks):
        count = 1 + (number + block) % 3
        adapters = tuple({n: t for n, t in drawn(k).items() if n.startswith(f"blocks.{block}.")} for k in range(count))
        router_KD = torch.randn(count, backbone.width, generator=generator)
        found |= Mixture(block, adapters, router_KD, torch.zeros(count)).to_tensors()
    return found


def new_model(backbone: Backbone, pool: SuffixPass, composition: str) -> ServingModel:
    frozen, entries = {}, []
    for n, group in enumerate(GROUPS):
        rows = slice(24 * n, 24 * n + 24)
        labels = [f"{group}-{i % 2}" if i % 3 else "shared" for i in range(24)]
        weights = new_weights(backbone, composition, n)
        pairs = [(i, "it") for i in range(24 * n, 24 * n + 24)]
        adapted_NF = stacked({"it": weights}).features(backbone, pool.starts, CUT, pairs)
        signatures_LND = pool.signatures_LND[:, rows]
        own = class_statistics(pool.features_NF[rows], labels)
        frozen[group] = (own,)
        descriptor = fit_descriptor(signatures_LND[:, ::2], signatures_LND[:, 1::2], rank=3)
        statistics = class_statistics(adapted_NF, labels)
        entries.append(AdapterEntry(f"adapter-{n}", group, weights, descriptor, (statistics,), (own,)))
    looks = tuple(KnownLook(f"waits-{e.adapter_id}", e.group, e.descriptor) for e in entries[::2])
    return ServingModel(CUT, SPEC, frozen, tuple(entries), looks)


@pytest.fixture(scope="module")
def models(vit: Backbone, pool: SuffixPass, small_heads: None) -> dict[str, ServingModel]:  # noqa: ARG001
    return {composition: new_model(vit, pool, composition) for composition in CASES}


class Corruption:
    """Replaces the tensors of what is forbidden by NaN or by random values, or leaves the whole out."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)

    def spoil(self, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        if self.random.random() < 0.5:
            return torch.full_like(tensor, torch.nan)
        return torch.randn(tensor.shape, generator=self.generator, dtype=tensor.dtype) * 10.0 ** self.random.randint(
            -3, 9
        )

    def statistics(self, each: ClassStatistics) -> ClassStatistics:
        return ClassStatistics.from_tensors({name: self.spoil(t) for name, t in each.to_tensors().items()})

    def look(self, look: KnownLook) -> KnownLook:
        spoilt = {name: self.spoil(t) for name, t in look.descriptor.to_tensors().items()}
        return replace(look, descriptor=Descriptor.from_tensors(spoilt))

    def entry(self, entry: AdapterEntry) -> AdapterEntry | None:
        if self.random.random() < 0.3:
            return None
        descriptor = {name: self.spoil(t) for name, t in entry.descriptor.to_tensors().items()}
        return replace(
            entry,
            weights={name: self.spoil(t) for name, t in entry.weights.items()},
            descriptor=Descriptor.from_tensors(descriptor),
            statistics=tuple(map(self.statistics, entry.statistics)),
            frozen=tuple(map(self.statistics, entry.frozen)),
        )

    def model(self, model: ServingModel, allowed: set[str]) -> ServingModel:
        frozen = {g: f if g in allowed else tuple(map(self.statistics, f)) for g, f in model.frozen.items()}
        for group in set(GROUPS) - allowed:
            if self.random.random() < 0.3:
                del frozen[group]
        waiting = tuple(look if look.group in allowed else self.look(look) for look in model.waiting)
        kept = [entry if entry.group in allowed else self.entry(entry) for entry in model.adapters]
        return ServingModel(CUT, SPEC, frozen, tuple(entry for entry in kept if entry is not None), waiting)


class Case:
    """One generated case: who asks for which records beside whom, and what of the rest is spoilt."""

    def __init__(self, model: ServingModel, seed: int) -> None:
        corruption = Corruption(seed)
        self.draw = corruption.random
        self.allowed = frozenset(self.draw.sample(GROUPS, self.draw.randint(1, 4)))
        self.rows = self.some_rows(MOST_ROWS)
        self.spoilt = compose(corruption.model(model, set(self.allowed)), self.allowed)
        beside = [self.other(model) for _ in range(self.draw.randint(0, MOST_OTHERS))]
        self.place = self.draw.randint(0, len(beside))
        self.requests = [*beside[: self.place], (self.spoilt, as_states(self.rows)), *beside[self.place :]]

    def other(self, model: ServingModel) -> tuple[Composed, list[Tensor]]:
        """Who may use what the caller may not, spoilt as it is: those adapters run in the same pass."""
        present = [g for n, g in enumerate(GROUPS) if f"adapter-{n}" in self.spoilt.bank]
        groups = self.draw.sample(present, self.draw.randint(1, len(present)))
        return replace(compose(model, groups), bank=self.spoilt.bank), as_states(self.some_rows(9))

    def some_rows(self, most: int) -> list[int]:
        return [self.draw.randrange(24 * len(GROUPS)) for _ in range(self.draw.randint(1, most))]


@pytest.mark.parametrize("composition", CASES)
@pytest.mark.parametrize("share", [0, pytest.param(1, marks=LONG)])
def test_what_a_caller_may_not_use_moves_no_bit(
    vit: Backbone, models: dict[str, ServingModel], pool: SuffixPass, composition: str, share: int
) -> None:
    passes = Passes(lambda _backbone, states, _cut: pick(pool, states), run_adapted)
    model, clean, visits, shared = models[composition], {}, 0, 0
    for seed in range(CASES[composition][share]):
        case = Case(model, seed)
        if case.allowed not in clean:
            everything = as_states(range(24 * len(GROUPS)))
            (clean[case.allowed],) = predict_each(vit, [(compose(model, case.allowed), everything)], passes)
        found = predict_each(vit, case.requests, passes)[case.place]
        assert_the_same(found, clean[case.allowed], case.rows)
        visits += sum(map(len, found.visits))
        shared += len(case.requests) > 1
    assert visits > 2 * CASES[composition][share]  # adapters do take part
    assert shared > CASES[composition][share] / 2


def assert_the_same(found: Prediction, clean: Prediction, rows: list[int]) -> None:
    assert torch.equal(found.scores_NC, clean.scores_NC[rows])
    assert found.labels == [clean.labels[row] for row in rows]
    assert found.visits == [clean.visits[row] for row in rows]


@pytest.mark.parametrize("composition", CASES)
def test_the_comparison_sees_what_is_allowed(
    vit: Backbone, models: dict[str, ServingModel], pool: SuffixPass, composition: str
) -> None:
    """One permitted weight that is 0.1 % off is seen: the check is not blind."""
    model = models[composition]
    passes = Passes(lambda _backbone, states, _cut: pick(pool, states), run_adapted)
    rows = as_states(range(24))
    bumped = replace(model.adapters[0], weights={k: t * 1.001 for k, t in model.adapters[0].weights.items()})
    answers = [
        predict_each(vit, [(compose(each, {"red"}), rows)], passes)[0].scores_NC
        for each in (model, ServingModel(CUT, SPEC, model.frozen, (bumped,)))
    ]
    assert not torch.equal(*answers)


def as_states(rows: Iterable[int]) -> list[Tensor]:
    """A test's state is its number in the pool."""
    return [torch.tensor(row) for row in rows]


def pick(pool: SuffixPass, numbers: list[Tensor]) -> SuffixPass:
    """The records of these numbers."""
    chosen = [int(number) for number in numbers]
    return SuffixPass(pool.features_NF[chosen], pool.signatures_LND[:, chosen], [pool.starts[i] for i in chosen])
