"""One version of a stream's model, ready to answer: from its manifest, blobs checked against their digests."""

from collections.abc import Sequence

from registry.errors import StateError
from registry.stream import Stream
from tasks.assembly import Manifest, load_model
from tasks.backbones import open_backbone
from tasks.entitlement import permitted
from tasks.learning.composition import Composed, Prediction, compose, predict
from tasks.prefix_cache import encode_inputs


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
        allowed = permitted(self.model.frozen, groups)
        if allowed not in self._composed:
            self._composed[allowed] = compose(self.model, allowed)
        return predict(self.backbone, self._composed[allowed], encode_inputs(self.stream, inputs))
