"""The registered model as MLflow loads it (models from code): raw inputs in, labels (or completions) and scores out.

The MLflow version holds the manifest alone; blobs are read from the artifact bucket that DECIDUOUS_* names. So a
deletion has one copy of every weight to remove, not one per version.
"""

import csv
import hashlib
import json
from base64 import b64decode
from math import isnan
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from registry.errors import StateError
from registry.sections import TaskType
from registry.stream import Stream
from tasks.answering import Line, Watch, registered_as
from tasks.entitlement import Entitlements
from tasks.prediction_log import note_prediction
from tasks.reading import input_fault


class StreamModel(PythonModel):
    """`params={"groups": "a,b"}` asks as a holder of those groups, `"caller"` says who asks; where grants are kept
    (DECIDUOUS_ENTITLEMENTS) they decide. A stream of one group needs neither."""

    def load_context(self, context: PythonModelContext) -> None:
        written = Path(context.artifacts["manifest"]).read_bytes()
        stream = Stream.model_validate(json.loads(written)["stream"])
        self.stream, self.answers = stream.name, stream.answers
        self.task, columns = stream.task, stream.columns.model_dump()
        self.column = columns.pop("input")
        self.others = {name for name in columns.values() if name is not None} - {self.column}
        version = registered_as(self.stream, hashlib.sha256(written).hexdigest())
        self.line = Line(Watch(self.stream, version))
        self.entitlements = Entitlements()

    def predict(
        self,
        context: PythonModelContext,  # noqa: ARG002
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        frame = pd.DataFrame(model_input)
        self._check_column(frame.columns[0])
        raw = [self._raw(number, item) for number, item in enumerate(frame.iloc[:, 0])]
        asked = params or {}
        groups = named_groups(str(asked.get("groups") or ""))
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
            },
            index=frame.index,  # pandas puts answers beside their rows by it
        )

    def _check_column(self, name: object) -> None:
        """MLflow has cut the frame to its first column, whatever that holds: an id would be answered like a text."""
        if name in self.others:
            raise StateError(
                f"the first column is {name!r}, which is no input of stream {self.stream!r}, and no other one is read: "
                f"give {self.column!r} alone"
            )

    def _raw(self, number: int, item: object) -> bytes:
        value = _decoded(item) if self.task == TaskType.IMAGE else _as_text(item)
        if isinstance(value, bytes) and value:  # what an image holds shows when it is decoded
            return value
        missing = value is pd.NA or (isinstance(value, float) and isnan(value))
        if (fault := input_fault(self.task, None if missing else value)) is not None:
            raise StateError(f"row {number} cannot be answered: {fault}; remove or correct it")
        return str(value).encode()


def named_groups(text: str) -> list[str]:
    """Separated by commas; a name that holds one stands in double quotes, as in CSV."""
    return [
        name for row in csv.reader(text.splitlines(), skipinitialspace=True) for each in row if (name := each.strip())
    ]


def _decoded(item: object) -> object:
    """JSON carries an image as base64, often in lines, which MLflow decodes in a frame and leaves alone in a list."""
    if not isinstance(item, bytes | str):
        return item
    try:
        raw = item.encode() if isinstance(item, str) else item
        return b64decode(b"".join(raw.split()), validate=True)
    except ValueError:  # the image itself
        return item


def _as_text(item: object) -> object:
    """What is not UTF-8 becomes no valid Unicode, which is refused by its row."""
    return item.decode(errors="surrogateescape") if isinstance(item, bytes) else item


mlflow.models.set_model(StreamModel())
