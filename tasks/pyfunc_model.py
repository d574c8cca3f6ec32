"""The registered model as MLflow loads it (models from code): raw inputs in, labels (or completions) and scores out.

The MLflow version holds the manifest alone; blobs are read from the artifact bucket that DECIDUOUS_* names. So a
deletion has one copy of every weight to remove, not one per version.
"""

import hashlib
import json
from base64 import b64decode
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from registry.sections import TaskType
from registry.stream import Stream
from tasks.answering import Line, Watch, registered_as
from tasks.entitlement import Entitlements
from tasks.prediction_log import note_prediction


class StreamModel(PythonModel):
    """`params={"groups": "a,b"}` asks as a holder of those groups, `"caller"` says who asks; where grants are kept
    (DECIDUOUS_ENTITLEMENTS) they decide. A stream of one group needs neither."""

    def load_context(self, context: PythonModelContext) -> None:
        written = Path(context.artifacts["manifest"]).read_bytes()
        stream = Stream.model_validate(json.loads(written)["stream"])
        self.stream, self.answers = stream.name, stream.answers
        self.images = stream.task == TaskType.IMAGE
        version = registered_as(self.stream, hashlib.sha256(written).hexdigest())
        self.line = Line(Watch(self.stream, version))
        self.entitlements = Entitlements()

    def predict(
        self,
        context: PythonModelContext,  # noqa: ARG002
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        raw = [self._raw(item) for item in pd.DataFrame(model_input).iloc[:, 0]]
        asked = params or {}
        groups = [name for name in str(asked.get("groups") or "").split(",") if name]
        entitled = self.entitlements.of(self.stream, str(asked.get("caller") or "") or None, groups)
        answer = self.line.ask(raw, entitled.groups)
        found = answer.prediction
        note_prediction(self.stream, answer.version, entitled.snapshot, found)
        return pd.DataFrame(
            {
                self.answers: found.labels,
                "score": found.scores_NC.max(1).values.double().tolist(),
                "adapter": [name or "" for name in found.adapter_ids],  # JSON has no word for a missing text but NaN
                "adapters": [",".join(visited) for visited in found.visits],
                "version": answer.version,
            }
        )

    def _raw(self, item: object) -> bytes:
        """JSON carries an image as base64, which MLflow decodes in a frame and leaves alone in a list."""
        raw = item if isinstance(item, bytes) else str(item).encode()
        if not self.images:
            return raw
        try:
            return b64decode(raw, validate=True)
        except ValueError:  # the image itself
            return raw


mlflow.models.set_model(StreamModel())
