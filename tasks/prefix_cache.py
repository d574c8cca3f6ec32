"""Hidden states at the cut, one file per record: computed once, read by every later step, purged by record.

A file holds unpadded rows; its name is the record's keyed hash and its input's digest, for a record that was discarded
may come again with another input, under a folder named by what else the states depend on.
States are those of the record alone (the backbone encodes batch-invariantly), so a deletion removes files and stales
none: its epoch is no part of a name, and other machines follow by what the catalog still holds (`local_copies`).
"""

import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from torch import Tensor

from infra import database
from infra.settings import settings
from registry import suppression
from registry.sections import TaskType
from registry.stream import Stream
from tasks import disk_cache
from tasks.backbones import cut_of, open_frozen
from tasks.learning.images import open_image
from tasks.learning.stored_states import BYTES_PER_VALUE, pack, rounded, unpack
from tasks.narration import say
from tasks.policies.caching import CachePlan, cache_or_recompute
from tasks.rows import Row
from tasks.stopwatch import timing
from tasks.suffix_memory import forget_passes

CHUNK = 64
CPU_FLOPS, CUDA_FLOPS = 50e9, 400e12  # per thread, per device: usual values, a setting overrules


def states_of(stream: Stream, rows: Sequence[Row]) -> list[Tensor]:
    """Per row the states entering the cut, (T, D) float32; encodes what the cache does not hold."""
    found = [_read(stream, row) for row in rows]
    missing = [n for n, state_TD in enumerate(found) if state_TD is None]
    for n, state_TD in zip(missing, _encode_and_keep(stream, [rows[n] for n in missing]), strict=True):
        found[n] = state_TD
    return [state_TD for state_TD in found if state_TD is not None]


def encode_missing(stream: Stream, rows: Sequence[Row]) -> int:
    """Run the frozen prefix for rows that the cache does not hold; returns how many: 0 where nothing is kept."""
    missing = [row for row in rows if not _file(stream, row).exists()] if plan_of(stream).cached else []
    for _ in _encode_and_keep(stream, missing):
        pass
    return len(missing)


def plan_of(stream: Stream) -> CachePlan:
    """Whether this process keeps the stream's states, and why; said once."""
    backbone = open_frozen(stream)
    width, dtype = BYTES_PER_VALUE[stream.cache.dtype], stream.cache.dtype
    flops = settings().device_flops or (
        CUDA_FLOPS if backbone.device.type == "cuda" else CPU_FLOPS * settings().threads
    )
    shape = (backbone.width, cut_of(stream, backbone), width)
    return _plan(stream.name, dtype, stream.cache.policy, *shape, flops, settings().disk_bandwidth)


@cache
def _plan(stream: str, dtype: str, *question: Any) -> CachePlan:
    plan = cache_or_recompute(*question)
    say(f"{stream}: hidden states are {f'kept as {dtype}' if plan.cached else 'not kept'}, {plan.reason}")
    return plan


def _encode_and_keep(stream: Stream, rows: Sequence[Row]) -> Iterator[Tensor]:
    keep = bool(rows) and plan_of(stream).cached
    for start in range(0, len(rows), CHUNK):
        chunk = rows[start : start + CHUNK]
        for row, state_TD in zip(chunk, encode(stream, chunk), strict=True):
            if keep:
                disk_cache.write_whole(_file(stream, row), pack(state_TD, stream.cache.dtype))
            yield state_TD
    if keep:
        _drop_suppressed(stream, rows)
        disk_cache.trim(_root(stream.name).parent.rglob("*"), settings().state_cache_bytes)


def _drop_suppressed(stream: Stream, rows: Sequence[Row]) -> None:
    """A ticket may have purged these records after they were loaded and before their states were written."""
    with database.transaction() as session:
        targets = suppression.suppressed(session, stream.name)
    if gone := [row.record for row in rows if row.record in targets["record"] or row.subject in targets["subject"]]:
        purge(stream.name, gone)


def encode(stream: Stream, rows: Sequence[Row]) -> list[Tensor]:
    """The states of rows, computed from their input without looking at the cache."""
    return encode_inputs(stream, [row.input for row in rows], are_new=False)


@timing("prefix")
def encode_inputs(stream: Stream, inputs: Sequence[bytes], are_new: bool = True) -> list[Tensor]:
    """The states of raw inputs: UTF-8 text, or image files. Raises ValueError for what a batch would not take in."""
    backbone = open_frozen(stream)
    images = stream.task == TaskType.IMAGE
    raw: Any = [open_image(i, are_new) if images else i.decode() for i in inputs]
    return [rounded(state_TD, stream.cache.dtype) for state_TD in backbone.encode(raw, cut_of(stream, backbone))]


def records_of(stream_name: str) -> set[str]:
    """Whose states lie here, under whatever recipe, whole or half written."""
    return {re.split("[-.]", path.name)[0] for path in _root(stream_name).glob("*/*/*")}


def purge(stream_name: str, records: Iterable[str]) -> int:
    """Remove the states of these records under every recipe; returns how many files went."""
    gone = 0
    forget_passes()
    for folder in _root(stream_name).glob("*"):
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


def _file(stream: Stream, row: Row) -> Path:
    backbone = open_frozen(stream)
    key = sha256(f"{backbone.digest}\x1f{cut_of(stream, backbone)}\x1f{stream.cache.dtype}".encode()).hexdigest()[:16]
    return _root(stream.name) / key / row.record[:2] / f"{row.record}-{sha256(row.input).hexdigest()[:16]}"


def _read(stream: Stream, row: Row) -> Tensor | None:
    """The states that the cache holds; None where it holds none, also because room was made for others."""
    path = _file(stream, row)
    try:
        data = path.read_bytes()
        os.utime(path)
    except FileNotFoundError:
        return None
    return unpack(data, stream.cache.dtype, open_frozen(stream).width)
