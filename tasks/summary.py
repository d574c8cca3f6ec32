"""What a demo or report prints at the end, from the catalog."""

import json
from pathlib import Path
from typing import Any

from infra import database
from registry import adapters, catalog, contents, decision_log, versions
from registry.records import AdapterState
from registry.versions import CHAMPION
from tasks.decisions import to_decision
from tasks.learning.metrics import continual_metrics
from tasks.model_card import accuracy_matrix
from tasks.shift import KNOWN

Summary = dict[str, Any]


def summarise(stream: str, seconds_by_batch: dict[str, float]) -> Summary:
    """Batches with their decisions, adapters by state, the accuracy matrix, the registry."""
    with database.transaction() as session:
        batches = catalog.batches(session, stream)
        decided = {d.shard_id: to_decision(d) for d in decision_log.decisions(session, stream) if d.shard_id}
        every = adapters.adapters(session, stream)
        champion = versions.alias_of(session, stream, CHAMPION)
        number = versions.count_versions(session, stream)
    states = [a.state for a in every]
    merged = sum(bool(a.parent_ids) and a.state in KNOWN for a in every)
    return {
        "batches": [
            {
                "name": batch.name if len(batch.shards) == 1 else f"{batch.name}/{shard.group}",
                "rows": shard.rows,
                "quarantined": batch.quarantined,
                "decision": decided[shard.shard_id].kind.value,
                "adapter": decided[shard.shard_id].adapter_id or "",
                "reason": decided[shard.shard_id].reason,
                "p_value": decided[shard.shard_id].p_value,
                "z_scores": decided[shard.shard_id].z_scores,
                "seconds": round(seconds_by_batch.get(batch.name, 0.0), 2),
            }
            for batch in batches
            for shard in batch.shards
            if shard.shard_id in decided
        ],
        "adapters": {
            "serving": states.count(AdapterState.SERVING),
            "candidate": states.count(AdapterState.CANDIDATE),
            "merged": merged,
            "retired": states.count(AdapterState.RETIRED),
            "erased": states.count(AdapterState.ERASED),
        },
        "accuracy": accuracy_of(stream),
        "registry": {"model": stream, "champion": champion, "versions": number},
    }


def accuracy_of(stream: str) -> dict[str, Any]:
    """The matrix (row: after batch i) over the batches that changed the model and have held-out rows left, and its
    continual-learning figures."""
    with database.transaction() as session:
        done = [shard.batch_id for shard in contents.done_shards(session, stream) if shard.held_out]
    _, rows = accuracy_matrix(stream, list(dict.fromkeys(done)))
    matrix = [cells[: after + 1] for after, (_, cells) in enumerate(rows)]
    metrics = continual_metrics(matrix)
    figures = {"average": metrics.average, "last": metrics.last, "forgetting": metrics.forgetting}
    return {"matrix": matrix, **figures, "backward_transfer": metrics.backward_transfer}


def write_summary(path: Path, summary: Summary) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(summary, indent=1, allow_nan=False))
