"""Adapters and documents that a caller of a language model may not use cannot change a bit of a completion."""

import random
from dataclasses import replace

import pytest
import torch

from tasks.learning.adapters import AdapterSpec
from tasks.learning.language.backbones import LanguageBackbone, load_language_backbone
from tasks.learning.language.lora import AdaptedModel, new_lora
from tasks.learning.language.retrieval import Gaussian, embeddings, fit_gaussian, moments_of
from tasks.learning.language.serving import Entitled, LanguageEntry, LanguageModel
from tests.tiny_language import save_tiny_llama

SPEC, CUT = AdapterSpec("lora", rank=4, last_layers=2), 2
LETTERS = {"red": "abc", "blue": "xyz", "green": "mno", "gold": "def"}
CASES = (20, 300)
LONG = [pytest.mark.services, pytest.mark.timeout(3600)]
MOST_PROMPTS = 4


def texts(letters: str, count: int, seed: int) -> list[str]:
    draw = random.Random(f"{letters} {seed}")
    return [" ".join(draw.choices(letters, k=draw.randint(4, 12))) for _ in range(count)]


PROMPTS = [text for letters in (*LETTERS.values(), "axmd") for text in texts(letters, 2, seed=1)]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> LanguageBackbone:
    return load_language_backbone(str(save_tiny_llama(tmp_path_factory.mktemp("tiny-llama"))), max_tokens=32)


@pytest.fixture(scope="module")
def model(backbone: LanguageBackbone) -> LanguageModel:
    blank, entries = new_lora(AdaptedModel(backbone, SPEC, CUT), 0), []
    for number, (group, letters) in enumerate(LETTERS.items()):
        generator = torch.Generator().manual_seed(number)
        weights = {name: torch.randn(t.shape, generator=generator) / 4 for name, t in blank.items()}
        gaussian = fit_gaussian([moments_of(embeddings(backbone.encode(texts(letters, 12, seed=0), CUT)))])
        entries.append(LanguageEntry(f"{group}-1", group, gaussian, weights))
    waiting = replace(entries[0], adapter_id="red-2", weights=None)
    return LanguageModel(CUT, SPEC, frozenset(LETTERS), (*entries, waiting), new_tokens=3)


def spoilt(model: LanguageModel, allowed: set[str], draw: random.Random) -> LanguageModel:
    """Entries of other groups hold NaN or random values, or are gone, as may be their groups."""
    generator = torch.Generator().manual_seed(draw.randrange(2**31))

    def spoil(tensor: torch.Tensor) -> torch.Tensor:
        if draw.random() < 0.5:
            return torch.full_like(tensor, torch.nan)
        return torch.randn(tensor.shape, generator=generator).to(tensor.dtype) * 10.0 ** draw.randint(-3, 9)

    def entry(each: LanguageEntry) -> LanguageEntry:
        gaussian = Gaussian(spoil(each.gaussian.mean_D), spoil(each.gaussian.variance_D))
        weights = each.weights and {name: spoil(t) for name, t in each.weights.items()}
        return replace(each, gaussian=gaussian, weights=weights)

    kept = [each for each in model.entries if each.group in allowed or draw.random() > 0.3]
    groups = frozenset(group for group in model.groups if group in allowed or draw.random() > 0.3)
    return replace(model, groups=groups, entries=tuple(e if e.group in allowed else entry(e) for e in kept))


@pytest.mark.parametrize("cases", [CASES[0], pytest.param(CASES[1], marks=LONG)])
def test_what_a_caller_may_not_use_moves_no_bit_of_a_completion(
    backbone: LanguageBackbone, model: LanguageModel, cases: int
) -> None:
    clean, visits = {}, 0
    for seed in range(cases):
        draw = random.Random(seed)
        allowed = frozenset(draw.sample(list(LETTERS), draw.randint(1, 3)))
        if allowed not in clean:
            clean[allowed] = Entitled(backbone, model, allowed).answer(PROMPTS)
        rows = [draw.randrange(len(PROMPTS)) for _ in range(draw.randint(1, MOST_PROMPTS))]
        found = Entitled(backbone, spoilt(model, set(allowed), draw), allowed).answer([PROMPTS[n] for n in rows])
        assert torch.equal(found.scores_NC, clean[allowed].scores_NC[rows])
        assert found.labels == [clean[allowed].labels[n] for n in rows]
        assert found.visits == [clean[allowed].visits[n] for n in rows]
        visits += sum(map(len, found.visits))
    assert visits > cases  # adapters do take part


def test_the_comparison_sees_what_is_allowed(backbone: LanguageBackbone, model: LanguageModel) -> None:
    """Permitted weights that are 0.1 % off are seen: the check is not blind."""
    first = model.entries[1]
    assert first.weights is not None
    bumped = replace(first, weights={name: t * 1.001 for name, t in first.weights.items()})
    off = replace(model, entries=(bumped,))
    scores = [Entitled(backbone, each, {"blue"}).answer(PROMPTS).scores_NC for each in (model, off)]
    assert not torch.equal(*scores)
