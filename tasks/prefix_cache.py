"""Hidden states at the cut, one file per record: computed once, read by every later step, purged by record.

A file is raw float32; its name is the record's keyed hash under a folder named by what the states depend on. States
are those of the record alone (the backbone encodes batch-invariantly), so a deletion removes files and stales none.
"""

import os
import shutil
from collections.abc import Iterable, Sequence
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from infra.settings import settings
from registry.stream import Stream, TaskType
from tasks.backbones import cut_of, open_backbone
from tasks.rows import Row
from tasks.stopwatch import timing
from tasks.suffix_memory import forget_passes

CHUNK = 64


def states_of(stream: Stream, rows: Sequence[Row]) -> list[Tensor]:
    """Per row the states entering the cut, (T, D) float32; encodes what the cache does not hold."""
    encode_missing(stream, rows)
    width = open_backbone(stream).width
    return [torch.from_numpy(np.fromfile(_file(stream, row.record), np.float32)).view(-1, width) for row in rows]


def encode_missing(stream: Stream, rows: Sequence[Row]) -> int:
    """Run the frozen prefix for rows that the cache does not hold; returns how many."""
    missing = [row for row in rows if not _file(stream, row.record).exists()]
    for start in range(0, len(missing), CHUNK):
        chunk = missing[start : start + CHUNK]
        for row, state_TD in zip(chunk, encode(stream, chunk), strict=True):
            _write(_file(stream, row.record), state_TD)
    return len(missing)


def encode(stream: Stream, rows: Sequence[Row]) -> list[Tensor]:
    """The states of rows, computed from their input without looking at the cache."""
    return encode_inputs(stream, [row.input for row in rows])


@timing("prefix")
def encode_inputs(stream: Stream, inputs: Sequence[bytes]) -> list[Tensor]:
    """The states of raw inputs: UTF-8 text, or image files."""
    backbone = open_backbone(stream)
    if stream.task == TaskType.IMAGE:
        return backbone.encode([Image.open(BytesIO(i)).convert("RGB") for i in inputs], cut_of(stream, backbone))
    return backbone.encode([i.decode() for i in inputs], cut_of(stream, backbone))


def purge(stream: Stream, records: Iterable[str]) -> int:
    """Remove the states of these records under every recipe; returns how many files went."""
    gone = 0
    forget_passes()
    for folder in _root(stream.name).glob("*"):
        for record in records:
            for path in (folder / record[:2]).glob(f"{record}*"):  # also what a killed process left half written
                path.unlink(missing_ok=True)
                gone += 1
    return gone


def clear(stream_name: str) -> None:
    """Remove every state of a stream; they are computed again where they are needed."""
    forget_passes()
    shutil.rmtree(_root(stream_name), ignore_errors=True)


def _root(stream_name: str) -> Path:
    return settings().home / "cache" / stream_name


def _file(stream: Stream, record: str) -> Path:
    backbone = open_backbone(stream)
    key = sha256(f"{backbone.digest}\x1f{cut_of(stream, backbone)}\x1ffloat32".encode()).hexdigest()[:16]
    return _root(stream.name) / key / record[:2] / record


def _write(path: Path, state_TD: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}")
    state_TD.contiguous().numpy().astype(np.float32).tofile(partial)
    partial.replace(path)
