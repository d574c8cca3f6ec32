"""What monitors need of records that are about to go: the hidden states of their training rows, and what was known.

With the markers they are the most concentrated copy of what a ticket deletes: one file that only its owner may read,
gone when the ticket is complete.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load
from torch import Tensor

from infra import database
from infra.files import write_private
from infra.settings import settings
from registry import contents
from registry.artifacts import encode_tensors
from registry.records import Shard
from registry.sections import TaskType
from registry.stream import Stream
from tasks.identity import catalog_key
from tasks.learning.tensors import tensor_to_labels, text_to_tensor
from tasks.prefix_cache import states_of
from tasks.rows import Row, held_out, trainable
from tasks.shards import load_rows

T = TypeVar("T")

AT_MOST = 1024
"""Records of a ticket that are held back, and strangers of a group that they are compared with."""


@dataclass(frozen=True)
class HeldBack:
    """N rows: states (T, D) each, labels, and the number of the shard that each is or was in."""

    states: Sequence[Tensor]
    labels: Sequence[str]
    shard_ids: Sequence[int]
    inputs: Sequence[bytes] = ()
    """Of documents, whose tokens are what is asked for; a classifier's records need their states alone."""
    before: Tensor = field(default_factory=lambda: torch.empty(0))
    """(N,) log likelihoods under the model that had learned them; empty where it was not asked."""

    def __len__(self) -> int:
        return len(self.labels)

    def of_shards(self, shard_ids: Iterable[int]) -> "HeldBack":
        wanted = set(shard_ids)
        return self.pick([n for n, shard_id in enumerate(self.shard_ids) if shard_id in wanted])

    def pick(self, chosen: Sequence[int]) -> "HeldBack":
        return HeldBack(
            [self.states[n] for n in chosen],
            [self.labels[n] for n in chosen],
            [self.shard_ids[n] for n in chosen],
            [self.inputs[n] for n in chosen] if self.inputs else (),
        )


NOTHING = HeldBack((), (), ())


def rows_to_hold(stream: Stream, touched: Sequence[Shard], keys: Iterable[int]) -> HeldBack:
    """The ticket's training rows; not those whose input somebody who stays submitted too."""
    wanted = set(keys)
    rows = [(shard, row) for shard in touched for row in load_rows(shard) if catalog_key(row.record) in wanted]
    mine = spread([(shard, row) for shard, row in rows if trainable([row])])
    shared = _shared_inputs(stream, {row.input for _, row in mine}, {row.record for _, row in rows})
    return encoded(stream, [(shard, row) for shard, row in mine if row.input not in shared])


def strangers(stream: Stream, touched: Sequence[Shard], leaving: Iterable[int] = ()) -> HeldBack:
    """Held-out rows that stay in these shards: of the same kind, and never trained on."""
    gone = set(leaving)
    rows = [(shard, row) for shard in touched for row in held_out(load_rows(shard))]
    return encoded(stream, spread([(shard, row) for shard, row in rows if catalog_key(row.record) not in gone]))


def encoded(stream: Stream, rows: Sequence[tuple[Shard, Row]]) -> HeldBack:
    states = states_of(stream, [row for _, row in rows])
    inputs = [row.input for _, row in rows] if stream.task == TaskType.LANGUAGE else ()
    return HeldBack(states, [row.label or "" for _, row in rows], [shard.shard_id for shard, _ in rows], inputs)


def hold_back(ticket_id: str, held: HeldBack, before: Tensor, strangers_before: Tensor) -> None:
    """Write them down, with what the model knew of them and of strangers before anything changes."""
    tensors = {
        "states": torch.cat(list(held.states)),
        "lengths": torch.tensor([len(state) for state in held.states]),
        "labels": text_to_tensor(held.labels),
        "shard_ids": torch.tensor(held.shard_ids),
        "inputs": text_to_tensor([each.decode() for each in held.inputs]),
        "before": before,
        "strangers_before": strangers_before,
    }
    write_private(held_file(ticket_id), encode_tensors(tensors))


def load_held(ticket_id: str) -> tuple[HeldBack, Tensor]:
    """The rows, and what strangers were like before. Nothing where no record had trained, or they lie elsewhere."""
    if not held_file(ticket_id).exists():
        return NOTHING, torch.empty(0)
    found = load(held_file(ticket_id).read_bytes())
    states = torch.split(found["states"], found["lengths"].tolist())
    labels, inputs = tensor_to_labels(found["labels"]), [text.encode() for text in tensor_to_labels(found["inputs"])]
    held = HeldBack(states, labels, found["shard_ids"].tolist(), inputs, found["before"])
    return held, found["strangers_before"]


def held_file(ticket_id: str) -> Path:
    return settings().home / "escrow" / f"{ticket_id}.safetensors"


def spread(values: Sequence[T]) -> list[T]:
    """At most so many of them, evenly spread."""
    every = max(1, -(-len(values) // AT_MOST))
    return list(values[::every])


def _shared_inputs(stream: Stream, inputs: set[bytes], records: set[str]) -> set[bytes]:
    """Those of the inputs that other records of the stream have too."""
    if not inputs:
        return set()
    with database.transaction() as session:
        shards = contents.stored_shards(session, stream.name)
    rows = (row for shard in shards for row in load_rows(shard))
    return {row.input for row in rows if row.input in inputs and row.record not in records}
