"""One version of a stream's model, ready to answer: from its manifest, blobs checked against their digests."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import islice

import torch
from torch import Tensor

from registry.errors import StateError
from registry.sections import TaskType
from registry.stream import Stream
from tasks.assembly import load_model
from tasks.backbones import open_backbone, open_frozen, open_language
from tasks.entitlement import permitted
from tasks.learning.composition import Composed, Prediction, ServingModel, compose, predict, predict_each
from tasks.learning.language.serving import Entitled, LanguageModel
from tasks.manifests import Manifest
from tasks.prefix_cache import encode_inputs
from tasks.reading import input_fault

COMPOSED = 16
"""Sets of groups whose composition is kept: each holds the sums that its heads are solved from, tens of megabytes, or
its own copy of a language model's adapters."""
CHUNK = 512
"""Rows of a request that are in memory as hidden states at a time, however many it has."""


@dataclass(frozen=True, slots=True)
class Request:
    """What one caller asks: raw inputs, and the groups that the caller holds."""

    inputs: Sequence[bytes]
    groups: Sequence[str]


class Answerer:
    """Composes once per entitlement; what a caller may not use takes no part in the composition."""

    def __init__(self, manifest: Manifest) -> None:
        self.stream = Stream.model_validate(manifest["stream"])
        digest = open_frozen(self.stream).digest
        if manifest["backbone_digest"] != digest:
            raise StateError(
                f"the model of {self.stream.name!r} was trained on backbone digest {manifest['backbone_digest']}, "
                f"{self.stream.backbone!r} now has {digest}; restore that backbone"
            )
        model = load_model(manifest)
        self._answers = (
            _Completions(self.stream, model) if isinstance(model, LanguageModel) else _Labels(self.stream, model)
        )

    def answer(self, inputs: Sequence[bytes], groups: Sequence[str]) -> Prediction:
        """Labels or completions, scores and adapters for raw inputs (UTF-8 text or image files), as a caller with these
        groups."""
        return self._answers.answer(inputs, groups)

    def answer_each(self, requests: Sequence[Request]) -> list[Prediction | Exception]:
        """Several callers at once. A request that cannot be answered gets its error; the others their answers."""
        return self._answers.answer_each(requests)


class _Labels:
    """Callers of a classifier are answered in one pass."""

    def __init__(self, stream: Stream, model: ServingModel) -> None:
        self.stream, self.model, self.backbone = stream, model, open_backbone(stream)
        self._compose = lru_cache(COMPOSED)(partial(compose, model))

    def answer(self, inputs: Sequence[bytes], groups: Sequence[str]) -> Prediction:
        composed = self._composed_for(groups)
        chunks = [inputs[start : start + CHUNK] for start in range(0, max(len(inputs), 1), CHUNK)]
        return _joined([predict(self.backbone, composed, encode_inputs(self.stream, chunk)) for chunk in chunks])

    def answer_each(self, requests: Sequence[Request]) -> list[Prediction | Exception]:
        found: dict[int, Prediction | Exception] = {}
        composed: dict[int, Composed] = {}
        states: dict[int, Sequence[Tensor]] = {}
        for number, request in enumerate(requests):
            try:
                if len(request.inputs) > CHUNK:
                    found[number] = self.answer(request.inputs, request.groups)
                else:
                    composed[number] = self._composed_for(request.groups)
            except StateError as error:
                found[number] = error
            except (ValueError, OSError) as error:
                found[number] = _unreadable(self.stream.task, request.inputs, error)
        try:
            encoded = iter(encode_inputs(self.stream, [i for n in composed for i in requests[n].inputs]))
            states = {n: list(islice(encoded, len(requests[n].inputs))) for n in composed}
        except (ValueError, OSError):  # one of them is no text or no image: which?
            for number in composed:
                try:
                    states[number] = encode_inputs(self.stream, requests[number].inputs)
                except (ValueError, OSError) as error:
                    found[number] = _unreadable(self.stream.task, requests[number].inputs, error)
        asked = [(composed[n], states[n]) for n in states]
        found.update(zip(states, predict_each(self.backbone, asked) if asked else [], strict=True))
        return [found[number] for number in range(len(requests))]

    def _composed_for(self, groups: Sequence[str]) -> Composed:
        return self._compose(permitted(self.model.frozen, groups))


class _Completions:
    """Callers of a language model are answered prompt by prompt: no answer depends on another caller."""

    def __init__(self, stream: Stream, model: LanguageModel) -> None:
        self.model = model
        self._compose = lru_cache(COMPOSED)(partial(Entitled, open_language(stream), model))

    def answer(self, inputs: Sequence[bytes], groups: Sequence[str]) -> Prediction:
        entitled = self._compose(permitted(self.model.groups, groups))
        return entitled.answer([text.decode() for text in inputs])

    def answer_each(self, requests: Sequence[Request]) -> list[Prediction | Exception]:
        return [self._answer_one(request) for request in requests]

    def _answer_one(self, request: Request) -> Prediction | Exception:
        try:
            return self.answer(request.inputs, request.groups)
        except UnicodeDecodeError as error:
            return _unreadable(TaskType.LANGUAGE, request.inputs, error)
        except StateError as error:
            return error


def _joined(parts: Sequence[Prediction]) -> Prediction:
    return replace(
        parts[0],
        labels=[label for part in parts for label in part.labels],
        scores_NC=torch.cat([part.scores_NC for part in parts]),
        adapter_ids=[name for part in parts for name in part.adapter_ids],
        visits=[visited for part in parts for visited in part.visits],
    )


def _unreadable(task: TaskType, inputs: Sequence[bytes], error: Exception) -> StateError:
    """Names the first row that cannot be answered: rows are looked through only where one of them went wrong."""
    raw = inputs if task == TaskType.IMAGE else [i.decode(errors="surrogateescape") for i in inputs]
    for number, value in enumerate(raw):
        if (fault := input_fault(task, value)) is not None:
            return StateError(f"row {number} cannot be answered: {fault}; remove or correct it")
    return StateError(f"an input cannot be read: {error}")
