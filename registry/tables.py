"""SQLAlchemy tables of the catalog. A record belongs to a shard; everything derived hangs on `edge`."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

from sqlalchemy import JSON, BigInteger, DateTime, ForeignKey, Index, Integer, String, TypeDecorator, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

T = TypeVar("T")
CHUNK = 500

# SQLite only auto-increments INTEGER keys, and its integers have 64 bits anyway
BigKey = BigInteger().with_variant(Integer, "sqlite")


class UtcDateTime(TypeDecorator[datetime]):
    """A moment in UTC: SQLite forgets the zone, and PostgreSQL answers in that of its server."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:  # noqa: ARG002
        return value and value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:  # noqa: ARG002
        return value and (value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC))


def in_chunks(values: Sequence[T]) -> Iterator[Sequence[T]]:
    """Databases bound the number of a query's parameters (32,766 in SQLite, 65,535 in PostgreSQL)."""
    return (values[start : start + CHUNK] for start in range(0, len(values), CHUNK))


def now() -> datetime:
    return datetime.now(UTC)


class Base(DeclarativeBase):
    type_annotation_map = {dict[str, Any]: JSON, datetime: UtcDateTime()}  # noqa: RUF012


class StreamRow(Base):
    __tablename__ = "stream"
    name: Mapped[str] = mapped_column(String(63), primary_key=True)
    config: Mapped[dict[str, Any]]
    recipe_digest: Mapped[str]
    backbone_digest: Mapped[str | None]
    epoch: Mapped[int] = mapped_column(default=0)
    """Grows with every deletion ticket; work that started under an older epoch is refused."""
    adapters_born: Mapped[int] = mapped_column(default=0)
    holder: Mapped[str] = mapped_column(default="", server_default="")
    """Who took the stream last: who was cut off from its lock finds another here."""
    created_at: Mapped[datetime] = mapped_column(default=now)


class BatchRow(Base):
    __tablename__ = "batch"
    __table_args__ = (UniqueConstraint("stream", "ordinal"),)
    batch_id: Mapped[str] = mapped_column(primary_key=True)
    stream: Mapped[str] = mapped_column(ForeignKey("stream.name"), index=True)
    name: Mapped[str]
    ordinal: Mapped[int]
    uri: Mapped[str]
    state: Mapped[str]
    rows: Mapped[int]
    quarantined: Mapped[int]
    suppressed: Mapped[int]
    epoch: Mapped[int]
    reason: Mapped[str] = mapped_column(default="")
    received_at: Mapped[datetime] = mapped_column(default=now)
    shards: Mapped[list["ShardRow"]] = relationship(order_by="ShardRow.shard_id", back_populates="batch")


class DeliveryRow(Base):
    """Source objects that were taken in, before and after a deletion rewrote them, and others of the same content."""

    __tablename__ = "delivery"
    stream: Mapped[str] = mapped_column(ForeignKey("stream.name"), primary_key=True)
    digest: Mapped[str] = mapped_column(primary_key=True)
    tag: Mapped[str] = mapped_column(primary_key=True)
    batch_id: Mapped[str] = mapped_column(ForeignKey("batch.batch_id"), index=True)


class QuarantineRow(Base):
    __tablename__ = "quarantine"
    batch_id: Mapped[str] = mapped_column(ForeignKey("batch.batch_id"), primary_key=True)
    reason: Mapped[str] = mapped_column(primary_key=True)
    rows: Mapped[int]


class ShardRow(Base):
    __tablename__ = "shard"
    shard_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    batch_id: Mapped[str] = mapped_column(ForeignKey("batch.batch_id"), index=True)
    group: Mapped[str] = mapped_column("group_label")
    rows: Mapped[int]
    held_out: Mapped[int]
    labelled: Mapped[int]
    batch: Mapped["BatchRow"] = relationship(back_populates="shards")


class SubjectRow(Base):
    """A small number for a subject's keyed hash: records and the index over them hold 4 bytes instead of 8."""

    __tablename__ = "subject"
    subject_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    key: Mapped[int] = mapped_column(BigInteger, unique=True)


class RecordRow(Base):
    """Keyed hashes only. 63-bit keys keep a record below 40 bytes on SQLite, so 1e8 of them stay ordinary SQL."""

    __tablename__ = "record"
    key: Mapped[int] = mapped_column(BigKey, primary_key=True, autoincrement=False)
    subject_id: Mapped[int] = mapped_column(ForeignKey("subject.subject_id"), index=True)
    shard_id: Mapped[int] = mapped_column(ForeignKey("shard.shard_id"))


class AdapterRow(Base):
    __tablename__ = "adapter"
    adapter_id: Mapped[str] = mapped_column(primary_key=True)
    stream: Mapped[str] = mapped_column(ForeignKey("stream.name"), index=True)
    group: Mapped[str] = mapped_column("group_label")
    state: Mapped[str]
    recipe: Mapped[dict[str, Any]]
    accuracy: Mapped[float | None]
    reason: Mapped[str] = mapped_column(default="")
    created_at: Mapped[datetime] = mapped_column(default=now)
    changed_at: Mapped[datetime] = mapped_column(default=now, onupdate=now)


class EdgeRow(Base):
    """`parent` shaped `child`. Nodes are 'shard:ID' and 'adapter:ID'."""

    __tablename__ = "edge"
    child: Mapped[str] = mapped_column(primary_key=True)
    parent: Mapped[str] = mapped_column(primary_key=True, index=True)
    kind: Mapped[str] = mapped_column(primary_key=True)
    ordinal: Mapped[int] = mapped_column(default=0)


class ObjectRow(Base):
    """Every blob and who owns it; a blob that nobody owns is collected."""

    __tablename__ = "object"
    owner: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(index=True)
    sha256: Mapped[str]
    size: Mapped[int] = mapped_column(BigKey)


class DecisionRow(Base):
    __tablename__ = "decision"
    decision_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    stream: Mapped[str] = mapped_column(ForeignKey("stream.name"), index=True)
    batch_id: Mapped[str | None] = mapped_column(ForeignKey("batch.batch_id"), index=True)
    shard_id: Mapped[int | None] = mapped_column(ForeignKey("shard.shard_id"))
    kind: Mapped[str]
    adapter_id: Mapped[str | None]
    reason: Mapped[str]
    numbers: Mapped[dict[str, Any]]
    decided_at: Mapped[datetime] = mapped_column(default=now)


class AccuracyRow(Base):
    """Held-out accuracy of one version on one batch: a cell of the accuracy matrix."""

    __tablename__ = "accuracy"
    stream: Mapped[str] = mapped_column(ForeignKey("stream.name"), primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True)
    batch_id: Mapped[str] = mapped_column(ForeignKey("batch.batch_id"), primary_key=True)
    accuracy: Mapped[float]
    exact_head: Mapped[float]
    rows: Mapped[int]


class VersionRow(Base):
    __tablename__ = "model_version"
    stream: Mapped[str] = mapped_column(ForeignKey("stream.name"), primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[str]
    manifest_key: Mapped[str]
    manifest_sha256: Mapped[str]
    epoch: Mapped[int]
    state: Mapped[str]
    accuracy: Mapped[float | None]
    reason: Mapped[str]
    cause: Mapped[str] = mapped_column(index=True)
    """What asked for it ('batch:ID', 'merge:ID', 'ticket:ID'); a re-run finds it instead of registering twice."""
    created_at: Mapped[datetime] = mapped_column(default=now)


class AliasEventRow(Base):
    """MLflow overwrites an alias without a trace; this is the trace."""

    __tablename__ = "alias_event"
    event_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    stream: Mapped[str] = mapped_column(ForeignKey("stream.name"), index=True)
    alias: Mapped[str]
    version: Mapped[int | None]
    previous: Mapped[int | None]
    by: Mapped[str]
    reason: Mapped[str]
    at: Mapped[datetime] = mapped_column(default=now)


class RequestRow(Base):
    """A gate that asked a person, and the answer: who, when, why."""

    __tablename__ = "approval"
    request_id: Mapped[str] = mapped_column(primary_key=True)
    stream: Mapped[str] = mapped_column(ForeignKey("stream.name"), index=True)
    gate: Mapped[str]
    what: Mapped[str]
    reason: Mapped[str]
    asked_at: Mapped[datetime] = mapped_column(default=now)
    due_at: Mapped[datetime]
    approved: Mapped[bool | None]
    approver: Mapped[str] = mapped_column(default="")
    note: Mapped[str] = mapped_column(default="")
    answered_at: Mapped[datetime | None]


class TicketRow(Base):
    __tablename__ = "ticket"
    ticket_id: Mapped[str] = mapped_column(primary_key=True)
    stream: Mapped[str] = mapped_column(ForeignKey("stream.name"), index=True)
    state: Mapped[str]
    epoch: Mapped[int]
    records: Mapped[int]
    received_at: Mapped[datetime] = mapped_column(default=now)
    due_at: Mapped[datetime]
    opened_by: Mapped[str]
    closed_at: Mapped[datetime | None]
    certificate_key: Mapped[str | None]
    note: Mapped[str] = mapped_column(default="")
    lead: Mapped[str | None]
    """The ticket under which this one's steps are noted: tickets that are open together are worked as one batch."""


class TicketEventRow(Base):
    """What became of a ticket, by whom and when: append-only, each entry chained to the one before it."""

    __tablename__ = "ticket_event"
    event_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    ticket_id: Mapped[str] = mapped_column(ForeignKey("ticket.ticket_id"), index=True)
    kind: Mapped[str]
    by: Mapped[str]
    note: Mapped[str]
    at: Mapped[datetime]
    previous: Mapped[str]
    sha256: Mapped[str]


class CondemnedRow(Base):
    """Digest of a blob that deleted records shaped: no version that names it is registered or promoted."""

    __tablename__ = "condemned"
    stream: Mapped[str] = mapped_column(ForeignKey("stream.name"), primary_key=True)
    sha256: Mapped[str] = mapped_column(primary_key=True)
    ticket_id: Mapped[str] = mapped_column(ForeignKey("ticket.ticket_id"))


class TicketTargetRow(Base):
    """What a ticket asks to forget; also the suppression list, which outlives the records."""

    __tablename__ = "suppression"
    __table_args__ = (Index("ix_suppression_lookup", "stream", "kind", "keyed_hash"),)
    ticket_id: Mapped[str] = mapped_column(ForeignKey("ticket.ticket_id"), primary_key=True)
    kind: Mapped[str] = mapped_column(primary_key=True)
    keyed_hash: Mapped[str] = mapped_column(primary_key=True)
    stream: Mapped[str] = mapped_column(ForeignKey("stream.name"))
    epoch: Mapped[int]


class TicketStepRow(Base):
    __tablename__ = "ticket_step"
    ticket_id: Mapped[str] = mapped_column(ForeignKey("ticket.ticket_id"), primary_key=True)
    step: Mapped[str] = mapped_column(primary_key=True)
    detail: Mapped[dict[str, Any]]
    seconds: Mapped[float]
    finished_at: Mapped[datetime] = mapped_column(default=now)


class CertificateRow(Base):
    """The append-only, hash-chained log of certificates; a ticket that was an exception may have several."""

    __tablename__ = "certificate"
    ordinal: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    ticket_id: Mapped[str] = mapped_column(ForeignKey("ticket.ticket_id"), index=True)
    sha256: Mapped[str]
    previous: Mapped[str]
    key: Mapped[str]
