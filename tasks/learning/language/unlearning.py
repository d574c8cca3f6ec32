"""Approximate unlearning of documents from one LoRA adapter: suppresses them, and proves nothing (guarantee A).

Shapes: B documents of a minibatch, T tokens, V vocabulary. Published source: NPO (arXiv 2404.05868) with a KL term on
retained documents.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from tasks.learning.adapters import AdapterSpec
from tasks.learning.language.backbones import LanguageBackbone
from tasks.learning.language.lora import NAME, AdaptedModel
from tasks.learning.language.training import IGNORED, Documents, pack_states, targets_of
from tasks.learning.tensors import require_finite
from tasks.learning.training import TrainState
from tasks.learning.unlearning import Suppression, npo_loss


def suppress_documents(
    backbone: LanguageBackbone,
    start: TrainState,
    forget: Documents,
    retain: Documents,
    cut: int,
    spec: AdapterSpec,
    how: Suppression,
) -> TrainState:
    """A state that finds `forget` less likely than `start` did, and `retain` as likely as before.

    Of `how`, the repulsion plays no part. Raises NonFiniteError on divergence.
    """
    now, before = AdaptedModel(backbone, spec, cut), AdaptedModel(backbone, spec, cut)
    for model in (now, before):
        model.load(NAME, start.adapter)
    seen, kept = (each.parts(backbone.max_tokens) for each in (forget, retain))
    optimizer = torch.optim.AdamW(now.parameters().values(), lr=how.learning_rate, weight_decay=0.0)
    for step in range(how.steps):
        own, others = (_minibatch(each, how.minibatch, step) for each in (seen, kept))
        with torch.no_grad():
            reference_B, reference_KV = _nll(before, own), _log_probabilities(before, others)
        kl = functional.kl_div(_log_probabilities(now, others), reference_KV, log_target=True, reduction="batchmean")
        loss = kl + how.npo * npo_loss(_nll(now, own), reference_B)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        require_finite("unlearning loss", loss.detach())
    adapter = {name: tensor.detach().clone() for name, tensor in now.parameters().items()}
    return replace(start, adapter=adapter, optimizer={})


def _nll(model: AdaptedModel, parts: Documents) -> Tensor:
    """(B,) negative log likelihood of each part."""
    logits_BTV, targets_BT = _read(model, parts)
    return functional.cross_entropy(logits_BTV.mT, targets_BT, ignore_index=IGNORED, reduction="none").sum(1)


def _log_probabilities(model: AdaptedModel, parts: Documents) -> Tensor:
    """(K, V) over all K tokens that are guessed."""
    logits_BTV, targets_BT = _read(model, parts)
    return functional.log_softmax(logits_BTV[targets_BT != IGNORED], 1)


def _read(model: AdaptedModel, parts: Documents) -> tuple[Tensor, Tensor]:
    rows = [parts.chosen([n]) for n in range(len(parts.tokens))]
    inputs, states_BTD = pack_states(model.backbone, rows)
    return model.logits(inputs, states_BTD).float(), targets_of(inputs)


def _minibatch(parts: Documents, size: int, step: int) -> Documents:
    order: Sequence[int] = torch.randperm(len(parts.tokens), generator=torch.Generator().manual_seed(step)).tolist()
    return parts.chosen(order[:size])
