"""The registered model as MLflow loads it (models from code): raw inputs in, labels and scores out.

The MLflow version holds the manifest alone; blobs are read from the artifact bucket that DECIDUOUS_* names. So a
deletion has one copy of every weight to remove, not one per version.
"""

import json
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from tasks.serving import Answerer


class StreamModel(PythonModel):
    """`params={"groups": "a,b"}` answers as a caller who holds those groups; a stream of one group needs none."""

    def load_context(self, context: PythonModelContext) -> None:
        self.answerer = Answerer(json.loads(Path(context.artifacts["manifest"]).read_text()))

    def predict(
        self,
        context: PythonModelContext,  # noqa: ARG002
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        raw = [item if isinstance(item, bytes) else str(item).encode() for item in pd.DataFrame(model_input).iloc[:, 0]]
        groups = [name for name in str((params or {}).get("groups") or "").split(",") if name]
        answer = self.answerer.answer(raw, groups)
        best = answer.scores_NC.max(1).values.tolist()
        return pd.DataFrame({"label": answer.labels, "score": best, "adapter": answer.adapter_ids})


mlflow.models.set_model(StreamModel())
