"""What the registry remembers, as frozen records. No I/O."""

from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

LABEL_SEPARATOR = "\x1f"
"""Between the labels of an adapter that was merged across groups; no group's own name holds it."""


def labels_of(group: str) -> frozenset[str]:
    """The access labels of an adapter: those of every shard that made it. A caller has to hold all of them."""
    return frozenset(group.split(LABEL_SEPARATOR))


class AdapterState(StrEnum):
    CANDIDATE = "candidate"
    SERVING = "serving"
    MERGED = "merged"
    RETIRED = "retired"
    ERASED = "erased"


class BatchState(StrEnum):
    READ = "read"
    DONE = "done"
    HELD = "held"
    DISCARDED = "discarded"


class DecisionKind(StrEnum):
    REUSE = "reuse"
    REFRESH = "refresh"
    EXPAND = "expand"
    HOLD = "hold"
    MERGE = "merge"
    KEEP = "keep"
    """A merge or a retirement that was refused."""
    RETIRE = "retire"


class EdgeKind(StrEnum):
    """How a parent shaped a child; the repair of a deletion follows the kind."""

    TRAINED_ON = "trained_on"
    MERGED_FROM = "merged_from"
    SERVES = "serves"
    WARM_START = "warm_start"
    """In a mixture, beside trained_on: its adapters were trained on what those of earlier shards make of it."""
    ROUTER_FIT = "router_fit"
    """Its router columns were fitted beside those of earlier shards."""


class VersionState(StrEnum):
    READY = "ready"
    QUARANTINED = "quarantined"
    ERASED = "erased"


class TicketState(StrEnum):
    RECEIVED = "received"
    VERIFIED = "verified"
    APPROVED = "approved"
    IN_PROGRESS = "in_progress"
    COMPLETE = "complete"
    EXCEPTION = "exception"
    DENIED = "denied"


@dataclass(frozen=True, slots=True)
class Delivery:
    """One object of the source that the ledger does not know yet."""

    uri: str
    digest: str
    size: int
    tag: str
    """What the store says of the object's version (ETag, or size and time); an unchanged tag is not read again."""


@dataclass(frozen=True, slots=True)
class Shard:
    """The records of one group in one batch: the unit of training, of access and of deletion."""

    shard_id: int
    batch_id: str
    batch_name: str
    group: str
    rows: int
    held_out: int
    labelled: int

    @property
    def node(self) -> str:
        return f"shard:{self.shard_id}"


@dataclass(frozen=True, slots=True)
class Batch:
    batch_id: str
    stream: str
    name: str
    ordinal: int
    uri: str
    state: BatchState
    rows: int
    """As it was delivered; `rows_left` is what deletions left of it."""
    quarantined: int
    suppressed: int
    epoch: int
    """Deletion epoch of the stream when the batch was read."""
    shards: tuple[Shard, ...] = ()
    reason: str = ""
    """Why it is held or discarded, or done without having been learned."""

    @property
    def node(self) -> str:
        return f"batch:{self.batch_id}"

    @property
    def rows_left(self) -> int:
        return sum(shard.rows for shard in self.shards)


@dataclass(frozen=True, slots=True)
class Adapter:
    adapter_id: str
    stream: str
    group: str
    state: AdapterState
    shard_ids: tuple[int, ...]
    """Shards whose rows shaped these weights, in training order; the closure of a deletion starts here."""
    parent_ids: tuple[str, ...] = ()
    """Adapters this one was merged from, in recorded order."""
    serves: tuple[int, ...] = ()
    """Shards whose statistics are kept under this adapter."""
    recipe: dict[str, Any] = field(default_factory=dict)
    accuracy: float | None = None
    """Held-out accuracy on the shards that it serves when it was last judged."""
    reason: str = ""

    @property
    def node(self) -> str:
        return f"adapter:{self.adapter_id}"

    @property
    def is_mixture(self) -> bool:
        """A group's whole mixture: shards grew it one after the other, each on what those before had made of it."""
        return self.recipe.get("kind") == "mixture"

    def trained_from(self, touched: Collection[int]) -> tuple[int, ...]:
        """The shards to train on again where these change: of a mixture all from the first of them on, in order."""
        first = next((n for n, shard_id in enumerate(self.shard_ids) if shard_id in touched), len(self.shard_ids))
        return self.shard_ids[first:] if self.is_mixture else self.shard_ids


@dataclass(frozen=True, slots=True)
class MixtureScan:
    """What a group's mixture makes of a shard's held-out rows, layer by layer, before anything grows."""

    adapter_id: str | None
    """None: the group has no mixture yet."""
    least: dict[str, float | None]
    """Layer -> the largest, over full minibatches, of the least mean z-score; None where it has no descriptor."""
    z_scores: dict[str, dict[str, float]]
    """Layer -> adapter -> mean z-score."""


@dataclass(frozen=True, slots=True)
class StoredObject:
    """A blob in the artifact bucket and the node of the lineage that owns it."""

    key: str
    sha256: str
    size: int
    kind: str
    owner: str


@dataclass(frozen=True, slots=True)
class ShiftEvidence:
    """How a shard differs from what one adapter has seen; high is more."""

    adapter_id: str
    p_value: float
    statistic: float
    z_scores: dict[str, float]
    """Layer name -> mean z-score of the shard under the adapter's descriptor."""
    novelty: float = 0.0
    """Largest statistic that other deals of the same classes to two sides reach; 0 where old classes were compared."""
    breadth: float | None = None
    """Share of the signature's dimensions whose distribution differs (KS, Bonferroni), where it was measured: told, not
    decided by."""
    compared: bool = True
    """False where a side had too few rows to compare: then the p-value is 1, and says nothing."""


@dataclass(frozen=True, slots=True)
class Decision:
    kind: DecisionKind
    adapter_id: str | None
    reason: str
    p_value: float | None = None
    z_scores: dict[str, dict[str, float]] = field(default_factory=dict)
    """Layer -> adapter -> mean z-score."""
    alternatives: dict[str, float | None] = field(default_factory=dict)
    """What was measured for the roads not taken: held-out accuracy by name."""

    def closest(self) -> list[str]:
        """The adapters that were compared, by the mean of their deviations over the layers, the least first."""
        names = sorted({name for of_layer in self.z_scores.values() for name in of_layer})
        deviations = {name: sum(abs(of_layer.get(name, 0.0)) for of_layer in self.z_scores.values()) for name in names}
        return sorted(names, key=lambda name: deviations[name])


@dataclass(frozen=True, slots=True)
class Verdict:
    """A gate's answer."""

    passed: bool
    reason: str


class Gate(StrEnum):
    PROMOTION = "promotion"
    MERGE = "merge"
    ERASURE = "erasure"


@dataclass(frozen=True, slots=True)
class Request:
    """What waits for a person's word at a gate."""

    request_id: str
    """'promotion:mail/4', 'merge:mail-a2+mail-a3' or 'erasure:t-20261121-0a1b2c3d'."""
    stream: str
    gate: Gate
    what: str
    reason: str
    due_at: datetime
    approved: bool | None = None
    approver: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class ModelVersion:
    stream: str
    version: int
    run_id: str
    manifest_key: str
    epoch: int
    state: VersionState
    accuracy: float | None
    reason: str


@dataclass(frozen=True, slots=True)
class Ticket:
    ticket_id: str
    stream: str
    state: TicketState
    received_at: datetime
    due_at: datetime
    records: int
    certificate_key: str | None = None
    note: str = ""
    """Why it is an exception or denied, and how to go on."""
    lead: str | None = None
    """The ticket under which its steps are noted."""
