"""Train one adapter on a worker of the gpu pool, and wake the run that waits for it."""

from prefect import flow

from registry.records import DecisionKind
from registry.stream import Stream
from tasks.adapters import refresh_adapter, train_adapter
from tasks.handover import load_shard, wake_waiting


@flow(
    name="train",
    flow_run_name="{stream.name}: train {adapter_id}",
    on_completion=[wake_waiting],
    on_failure=[wake_waiting],
    on_cancellation=[wake_waiting],
)
def train(
    stream: Stream,
    adapter_id: str,
    shard_id: int,
    kind: DecisionKind = DecisionKind.EXPAND,
    waiting: str | None = None,  # noqa: ARG001  read by wake_waiting
) -> str:
    """Return the adapter's id. A killed run goes on from the last slice's checkpoint, on any worker of its kind.

    `waiting` is the id of a suspended run to resume at the end.
    """
    shard = load_shard(stream, shard_id)
    trained = (refresh_adapter if kind == DecisionKind.REFRESH else train_adapter)(stream, shard, adapter_id)
    return trained.adapter_id
