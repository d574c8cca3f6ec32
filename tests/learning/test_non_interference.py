"""What a caller may not use cannot change a bit of what the caller gets: 10,000 generated answers."""

import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tasks.learning import heads
from tasks.learning.adapters import AdapterSpec, new_adapter
from tasks.learning.backbones import Backbone
from tasks.learning.banks import stacked
from tasks.learning.composition import AdapterEntry, KnownLook, Passes, ServingModel, compose, predict_each, run_adapted
from tasks.learning.descriptors import Descriptor, fit_descriptor
from tasks.learning.features import SuffixPass, run_suffix
from tasks.learning.heads import ClassStatistics, class_statistics
from tests.learning.conftest import pictures

SPEC, CUT = AdapterSpec(rank=4, last_layers=2), 2
GROUPS = ("red", "blue", "green", "gold", "grey")
DRAWS, ROWS = 200, 50


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


@pytest.fixture(scope="module")
def model(vit: Backbone, pool: SuffixPass, small_heads: None) -> ServingModel:  # noqa: ARG001
    frozen, entries = {}, []
    for n, group in enumerate(GROUPS):
        rows = slice(24 * n, 24 * n + 24)
        labels = [f"{group}-{i % 2}" if i % 3 else "shared" for i in range(24)]
        generator = torch.Generator().manual_seed(n)
        weights = {k: torch.randn(t.shape, generator=generator) / 8 for k, t in new_adapter(vit, SPEC, n).items()}
        pairs = [(i, "it") for i in range(24 * n, 24 * n + 24)]
        adapted_NF = stacked({"it": weights}).features(vit, pool.starts, CUT, pairs)
        signatures_LND = pool.signatures_LND[:, rows]
        own = class_statistics(pool.features_NF[rows], labels)
        frozen[group] = (own,)
        descriptor = fit_descriptor(signatures_LND[:, ::2], signatures_LND[:, 1::2], rank=3)
        statistics = class_statistics(adapted_NF, labels)
        entries.append(AdapterEntry(f"adapter-{n}", group, weights, descriptor, (statistics,), (own,)))
    looks = tuple(KnownLook(f"waits-{e.adapter_id}", e.group, e.descriptor) for e in entries[::2])
    return ServingModel(CUT, SPEC, frozen, tuple(entries), looks)


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


def test_ten_thousand_answers_do_not_move_by_a_bit(vit: Backbone, model: ServingModel, pool: SuffixPass) -> None:
    """Half of the minibatches are shared with a caller who may use what the first may not, spoilt as it is."""
    passes = Passes(lambda _backbone, states, _cut: pick(pool, states), run_adapted)
    compared, visits = 0, 0
    for draw in range(DRAWS):
        corruption = Corruption(draw)
        allowed = set(corruption.random.sample(GROUPS, corruption.random.randint(1, 4)))
        rows = [torch.tensor(corruption.random.randrange(len(pool.starts))) for _ in range(ROWS)]
        spoilt = compose(corruption.model(model, allowed), allowed)
        requests = [(spoilt, rows)]
        if draw % 2:
            others = [torch.tensor(corruption.random.randrange(len(pool.starts))) for _ in range(9)]
            present = {g for g in GROUPS if f"adapter-{GROUPS.index(g)}" in spoilt.bank}
            requests.append((replace(compose(model, present), bank=spoilt.bank), others))
        (clean,) = predict_each(vit, [(compose(model, allowed), rows)], passes)
        found = predict_each(vit, requests, passes)[0]
        assert torch.equal(found.scores_NC, clean.scores_NC)
        assert (found.labels, found.visits) == (clean.labels, clean.visits)
        compared += len(rows)
        visits += sum(map(len, found.visits))
    assert compared == 10_000
    assert visits > 5_000  # adapters do take part


def test_the_comparison_sees_what_is_allowed(vit: Backbone, model: ServingModel, pool: SuffixPass) -> None:
    """One permitted weight that is 0.1 % off is seen: the check is not blind."""
    passes = Passes(lambda _backbone, states, _cut: pick(pool, states), run_adapted)
    rows = [torch.tensor(n) for n in range(24)]
    bumped = replace(model.adapters[0], weights={k: t * 1.001 for k, t in model.adapters[0].weights.items()})
    answers = [
        predict_each(vit, [(compose(each, {"red"}), rows)], passes)[0].scores_NC
        for each in (model, ServingModel(CUT, SPEC, model.frozen, (bumped,)))
    ]
    assert not torch.equal(*answers)


def pick(pool: SuffixPass, numbers: list[Tensor]) -> SuffixPass:
    """The records of these numbers; a test's state is its number in the pool."""
    chosen = [int(number) for number in numbers]
    return SuffixPass(pool.features_NF[chosen], pool.signatures_LND[:, chosen], [pool.starts[i] for i in chosen])
