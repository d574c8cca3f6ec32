"""Answers of a causal language model from the adapters that a caller may use, and from no other.

Shapes: N prompts, T tokens, D width.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from transformers import GenerationConfig

from registry.records import labels_of
from tasks.learning.adapters import AdapterSpec, AdapterWeights
from tasks.learning.composition import Prediction
from tasks.learning.language.backbones import LanguageBackbone
from tasks.learning.language.lora import AdaptedModel
from tasks.learning.language.retrieval import Gaussian, embeddings, nearest
from tasks.learning.language.scoring import TokenScores, score_tokens
from tasks.learning.language.training import Documents


@dataclass(frozen=True)
class LanguageEntry:
    """One adapter and the Gaussian of its own texts; `weights` is None for one that waits and does not serve."""

    adapter_id: str
    group: str
    gaussian: Gaussian
    weights: AdapterWeights | None


@dataclass(frozen=True)
class LanguageModel:
    """All that a stream serves from; `groups` are those that have data, whether or not an adapter serves them."""

    cut: int
    spec: AdapterSpec
    groups: frozenset[str]
    entries: tuple[LanguageEntry, ...]
    top_k: int = 1
    far: float = math.inf
    new_tokens: int = 32


class Entitled:
    """What one caller may use: entries of other groups are dropped here, before a density is computed or a weight
    loaded.

    A text that looks most like what an adapter saw that does not serve, or is `far` from all that the caller's adapters
    saw, is left to the frozen backbone.
    """

    def __init__(self, backbone: LanguageBackbone, model: LanguageModel, groups: Collection[str]) -> None:
        if not set(groups) & model.groups:
            raise ValueError(f"no shard of the groups {sorted(groups)} serves; ask for a group that has data")
        permitted = [entry for entry in model.entries if labels_of(entry.group) <= set(groups)]
        self.backbone, self.model, self.groups = backbone, model, tuple(sorted(set(groups) & model.groups))
        self.gaussians: Mapping[str, Gaussian] = {entry.adapter_id: entry.gaussian for entry in permitted}
        self.weights = {entry.adapter_id: entry.weights for entry in permitted if entry.weights is not None}

    def route(self, states: Sequence[Tensor]) -> list[dict[str, float]]:
        """Per text the serving adapters that answer it and their shares; empty for the frozen backbone alone."""
        if not self.gaussians:
            return [{} for _ in states]
        found = nearest(self.gaussians, embeddings(states), self.model.top_k, self.model.far)
        return [{name: share for name, share in each.items() if name in self.weights} for each in found]

    def score(self, documents: Documents, alone: bool = False, given: Sequence[int] | None = None) -> list[TokenScores]:
        """Every token of the documents, under what their texts retrieve; `alone` is the frozen backbone.

        Where `given` says how many tokens of each are the prompt, retrieval sees those alone, as `answer` would.
        """
        if alone:
            return score_tokens(self._suffix, documents)
        ends = [len(ids) for ids in documents.tokens] if given is None else given
        asked = [state_TD[:end] for state_TD, end in zip(documents.states, ends, strict=True)]
        return score_tokens(self._suffix, documents, self.route(asked))

    def answer(self, prompts: Sequence[str]) -> Prediction:
        """Greedy completions, one prompt at a time: an answer depends on its prompt and on what it retrieves alone.

        Labels are the completions; scores (N, 1) the geometric mean probability of their tokens.
        """
        tokens = [self.backbone.prompt(text, self.model.new_tokens) for text in prompts]
        shares = self.route(self.backbone.encode_tokens(tokens, self.model.cut))
        completed = [self._complete(ids, mix) for ids, mix in zip(tokens, shares, strict=True)]
        scores_N1 = torch.tensor([[score] for _, score in completed]).reshape(-1, 1)
        likeliest = [max(mix, key=lambda name: mix[name]) if mix else None for mix in shares]
        labels, visits = [text for text, _ in completed], [tuple(sorted(mix)) for mix in shares]
        return Prediction(labels, scores_N1, likeliest, visits, self.groups)

    def _complete(self, ids: Sequence[int], shares: Mapping[str, float]) -> tuple[str, float]:
        end = self.backbone.end
        how = GenerationConfig(
            max_new_tokens=self.model.new_tokens,
            do_sample=False,
            eos_token_id=end,
            pad_token_id=end,
            return_dict_in_generate=True,
            output_logits=True,
        )
        ids_1T = torch.tensor([list(ids)], device=self.backbone.device)
        with self._whole.using(shares), torch.inference_mode():
            found = self._whole.peft.generate(
                input_ids=ids_1T, attention_mask=torch.ones_like(ids_1T), generation_config=how
            )
        written = found.sequences[0, len(ids) :].tolist()
        chances = [
            float(torch.log_softmax(row_1V[0].float(), 0)[n]) for row_1V, n in zip(found.logits, written, strict=True)
        ]
        text = self.backbone.tokenizer.decode([n for n in written if n != end], skip_special_tokens=True)
        return text, math.exp(sum(chances) / max(len(chances), 1))

    @cached_property
    def _suffix(self) -> AdaptedModel:
        return self._holding(self.model.cut)

    @cached_property
    def _whole(self) -> AdaptedModel:
        return self._holding(None)

    def _holding(self, cut: int | None) -> AdaptedModel:
        model = AdaptedModel(self.backbone, self.model.spec, cut)
        for name, weights in self.weights.items():
            model.load(name, weights)
        return model
