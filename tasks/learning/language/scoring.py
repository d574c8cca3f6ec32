"""How likely a model finds documents, token by token: perplexity, completion accuracy, exact completions.

Shapes: N documents, B rows, T tokens, V vocabulary.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from tasks.learning.language.lora import AdaptedModel
from tasks.learning.language.training import IGNORED, Documents, targets_of


@dataclass(frozen=True)
class TokenScores:
    """Of the tokens of one document that a model had to guess: the first of each part is given."""

    nll_T: Tensor
    """Negative log likelihood of each."""
    right_T: Tensor
    """Whether it was the likeliest one, as greedy completion would write it."""

    @property
    def accuracy(self) -> float:
        """Completion accuracy: the share of the tokens that come next as they stand there."""
        return float(self.right_T.double().mean()) if len(self.right_T) else 0.0

    @property
    def likelihood(self) -> float:
        """Mean log likelihood of its tokens; 0 of a document of one token, which is given."""
        return -float(self.nll_T.mean()) if len(self.nll_T) else 0.0


def perplexity(scores: Sequence[TokenScores]) -> float:
    """exp of the mean negative log likelihood over all tokens; infinite without one."""
    count = sum(len(each.nll_T) for each in scores)
    return math.exp(min(sum(float(each.nll_T.sum()) for each in scores) / count, 700.0)) if count else math.inf


def score_tokens(
    model: AdaptedModel, documents: Documents, shares: Sequence[Mapping[str, float]] | None = None
) -> list[TokenScores]:
    """Each document under the adapters that its shares name, under the frozen backbone where there are none.

    A document's bytes depend on itself and on those adapters alone: minibatches have a constant shape.
    """
    context = model.backbone.max_tokens
    owners = [n for n, ids in enumerate(documents.tokens) for _ in range(0, len(ids), context)]
    parts = documents.parts(context)
    wanted = [dict(shares[n]) if shares is not None else {} for n in owners]
    found: list[TokenScores] = [TokenScores(torch.empty(0), torch.empty(0))] * len(owners)
    for mix in {tuple(sorted(each.items())): each for each in wanted}.values():
        members = [n for n, each in enumerate(wanted) if each == mix]
        with model.using(mix), torch.inference_mode():
            for chosen, padded in model.backbone.minibatches([len(parts.tokens[n]) for n in members]):
                numbers = [members[i] for i in chosen]
                for n, scored in zip(numbers, _score(model, parts.chosen(numbers), padded), strict=True):
                    found[n] = scored
    whole: list[list[TokenScores]] = [[] for _ in documents.tokens]
    for owner, scored in zip(owners, found, strict=True):
        whole[owner].append(scored)
    return [TokenScores(torch.cat([s.nll_T for s in each]), torch.cat([s.right_T for s in each])) for each in whole]


def _score(model: AdaptedModel, parts: Documents, padded: int) -> list[TokenScores]:
    backbone, cut = model.backbone, model.cut or 0
    inputs = backbone.rows_of(parts.tokens, padded)
    states_BTD = torch.zeros(backbone.rows, padded, backbone.width)
    for row, state_TD in enumerate(parts.states):
        states_BTD[row, : len(state_TD)] = state_TD
    logits_BTV = model.logits(inputs, states_BTD.to(backbone.device)).float()
    backbone.work.forwards += len(parts.tokens) * (backbone.num_blocks - cut)
    targets_BT = targets_of(inputs)
    nll_BT = functional.cross_entropy(logits_BTV.mT, targets_BT, ignore_index=IGNORED, reduction="none").cpu()
    right_BT = (logits_BTV.argmax(-1) == targets_BT).cpu()
    lengths = [len(ids) - 1 for ids in parts.tokens]
    return [TokenScores(nll_BT[row, :n].clone(), right_BT[row, :n].clone()) for row, n in enumerate(lengths)]
