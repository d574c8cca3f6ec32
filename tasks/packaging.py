"""The MLflow folder of a version: its manifest and the code that answers from it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlflow
import pandas as pd
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from PIL import Image

from registry.sections import TaskType
from registry.stream import Stream
from tasks import blobs
from tasks.manifests import Manifest

CODE = Path(__file__).with_name("pyfunc_model.py")
REQUIREMENTS = (
    "torch", "transformers", "peft", "safetensors", "boto3", "sqlalchemy", "psycopg", "psycopg-binary", "alembic",
    "pydantic-settings", "pyarrow", "pillow", "prefect", "pyyaml", "tenacity", "cryptography", "psutil",
)  # fmt: skip


@contextmanager
def packed_model(stream: Stream, manifest: Manifest) -> Iterator[Path]:
    """A folder that `mlflow.pyfunc.load_model` loads; gone when the block ends."""
    with TemporaryDirectory() as scratch:
        written = Path(scratch) / "manifest.json"
        written.write_bytes(blobs.json_bytes(manifest))
        folder = Path(scratch) / "model"
        mlflow.pyfunc.save_model(
            str(folder),
            python_model=str(CODE),
            artifacts={"manifest": str(written)},
            signature=_signature(stream),
            input_example=_example(stream),
            pip_requirements=[f"{name}=={version(name).split('+')[0]}" for name in REQUIREMENTS],
            metadata={"stream": stream.name, "shards": json.dumps(len(manifest["shards"]))},
        )
        yield folder


def _example(stream: Stream) -> Any:
    if stream.task != TaskType.IMAGE:
        return ["a raw text"]
    grey = BytesIO()
    Image.new("RGB", (32, 32), "grey").save(grey, "PNG")
    return pd.DataFrame([grey.getvalue()])


def _signature(stream: Stream) -> ModelSignature:
    # the input column has no name: a list, a series and a frame of one column are all raw inputs
    kind = DataType.binary if stream.task == TaskType.IMAGE else DataType.string
    return ModelSignature(
        inputs=Schema([ColSpec(kind)]),
        outputs=Schema(
            [
                ColSpec("string", stream.answers),
                ColSpec("double", "score"),
                ColSpec("string", "adapter", required=False),
                ColSpec("string", "adapters"),
                ColSpec("long", "version"),
            ]
        ),
        params=ParamSchema([ParamSpec("groups", DataType.string, ""), ParamSpec("caller", DataType.string, "")]),
    )
