"""One version of a stream's model, ready to answer: from its manifest, blobs checked against their digests."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from torch import Tensor

from registry.errors import StateError
from registry.stream import Stream
from tasks.assembly import Manifest, load_model
from tasks.backbones import open_backbone
from tasks.entitlement import permitted
from tasks.learning.composition import Composed, Prediction, compose, predict, predict_each
from tasks.prefix_cache import encode_inputs


@dataclass(frozen=True, slots=True)
class Request:
    """What one caller asks: raw inputs, and the groups that the caller holds."""

    inputs: Sequence[bytes]
    groups: Sequence[str]


class Answerer:
    """Composes once per entitlement; what a caller may not use takes no part in the composition."""

    def __init__(self, manifest: Manifest) -> None:
        self.stream = Stream.model_validate(manifest["stream"])
        self.backbone = open_backbone(self.stream)
        if manifest["backbone_digest"] != self.backbone.digest:
            raise StateError(
                f"the model of {self.stream.name!r} was trained on backbone digest {manifest['backbone_digest']}, "
                f"{self.stream.backbone!r} now has {self.backbone.digest}; restore that backbone"
            )
        self.model = load_model(manifest)
        self._composed: dict[tuple[str, ...], Composed] = {}

    def answer(self, inputs: Sequence[bytes], groups: Sequence[str]) -> Prediction:
        """Labels, scores and adapters for raw inputs (UTF-8 text or image files), as a caller with these groups."""
        return predict(self.backbone, self._composed_for(groups), encode_inputs(self.stream, inputs))

    def answer_each(self, requests: Sequence[Request]) -> list[Prediction | Exception]:
        """Several callers in one pass. A request that cannot be answered gets its error; the others their answers."""
        found: dict[int, Prediction | Exception] = {}
        composed: dict[int, Composed] = {}
        states: dict[int, Sequence[Tensor]] = {}
        for number, request in enumerate(requests):
            try:
                composed[number] = self._composed_for(request.groups)
            except StateError as error:
                found[number] = error
        try:
            encoded = iter(encode_inputs(self.stream, [i for n in composed for i in requests[n].inputs]))
            states = {n: list(islice(encoded, len(requests[n].inputs))) for n in composed}
        except (ValueError, OSError):  # one of them is no text or no image: which?
            for number in composed:
                try:
                    states[number] = encode_inputs(self.stream, requests[number].inputs)
                except (ValueError, OSError) as error:
                    found[number] = StateError(f"an input cannot be read: {error}")
        asked = [(composed[n], states[n]) for n in states]
        found.update(zip(states, predict_each(self.backbone, asked) if asked else [], strict=True))
        return [found[number] for number in range(len(requests))]

    def _composed_for(self, groups: Sequence[str]) -> Composed:
        allowed = permitted(self.model.frozen, groups)
        if allowed not in self._composed:
            self._composed[allowed] = compose(self.model, allowed)
        return self._composed[allowed]
