"""What a deletion costs against training everything again: `python -m benchmarks.deletion --shards 50 --tickets 20`.

A synthetic stream (random letters, a tiny backbone with random weights) in a temporary home with its own S3, catalog
and MLflow. Costs are block evaluations, rows times blocks, so that no clock enters them.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.running import home_of_its_own, say, tell

ROWS, SUBJECTS = 40, 10
LETTERS = "abcdefghijklmnopqrstuvwxyz"
LETTERS_A_BATCH = 5


def measure(folder: Path, shards: int, tickets: int, groups: int) -> dict[str, Any]:
    """Learn `shards` shards, work one-subject tickets one after the other, then train everything once more."""
    from flows.learn import learn  # noqa: PLC0415
    from tasks import opening  # noqa: PLC0415

    groups = min(groups, shards)
    opening.open_home()
    stream = synthetic_stream(folder, -(-shards // groups), groups)
    learn(stream)
    found = opening.served_shards(stream.name)
    say(f"{len(found)} shards learned")
    certificates, seconds = [], dict[str, list[float]]()
    for subject in np.random.default_rng(1).permutation(len(found) * SUBJECTS)[:tickets].tolist():
        name = _subject(subject // SUBJECTS // groups, subject // SUBJECTS % groups, subject % SUBJECTS)
        certificate, took = erase(stream.name, name)
        certificates.append(certificate)
        for step, spent in took.items():
            seconds.setdefault(step, []).append(spent)
    return _figures(certificates, seconds, len(found), train_everything(stream.name))


def erase(stream: str, *subjects: str) -> tuple[dict[str, Any], dict[str, float]]:
    """Work one ticket of these subjects: its certificate, and the seconds of each step."""
    from flows.forget import forget  # noqa: PLC0415
    from infra import database  # noqa: PLC0415
    from registry import tickets  # noqa: PLC0415
    from tasks import opening  # noqa: PLC0415
    from tasks.certificates import verify  # noqa: PLC0415
    from tasks.tickets import open_ticket, resolve_targets  # noqa: PLC0415

    closed = forget(open_ticket(stream, resolve_targets(stream, subjects, []), "benchmark").ticket_id)
    certificate = verify(Path(opening.certificate_path(closed.ticket_id)).read_bytes())
    say(f"{closed.ticket_id}: {closed.records} records, {closed.state.value}, {certificate['guarantee']}")
    with database.transaction() as session:
        return certificate, {step.step: step.seconds for step in tickets.steps_of(session, closed.ticket_id)}


def _figures(
    certificates: list[dict[str, Any]], seconds: dict[str, list[float]], shards: int, everything: int
) -> dict[str, Any]:
    """Costs are block evaluations, `everything` those of training all shards once more."""
    rebuilt = [c["rebuilt"]["block_evaluations"] for c in certificates]
    repairs = [len(c["closure"]["repairs"]) for c in certificates]
    return {
        "byte_equal": sum(all(each["equal"] for each in c["comparison"].values()) for c in certificates),
        "sweep_hits": sum(c["sweep"]["hits"] for c in certificates),
        "cost_ratio": round(float(np.mean(rebuilt)) / everything, 4),
        "closure_p99": int(np.percentile(repairs, 99, method="higher")),
        "seconds_by_step": {step: round(float(np.mean(took)), 2) for step, took in seconds.items()},
        "shards": shards,
        "tickets": len(certificates),
        "e0": sum(c["guarantee"] == "E0" for c in certificates),
        "cost_ratio_max": round(max(rebuilt) / everything, 4),
        "block_evaluations": {"ticket": round(float(np.mean(rebuilt))), "everything": everything},
    }


def train_everything(name: str) -> int:
    """Block evaluations of fitting every shard and adapter anew: the cached prefix is used, no checkpoint is."""
    from infra import database  # noqa: PLC0415
    from registry import adapters, ownership  # noqa: PLC0415
    from tasks import opening  # noqa: PLC0415
    from tasks.adapters import fit_trained  # noqa: PLC0415
    from tasks.rebuilding import block_evaluations  # noqa: PLC0415
    from tasks.shards import fit_shard  # noqa: PLC0415

    stream = opening.stream_of(name)
    with database.transaction() as session:
        trained = [a for a in adapters.adapters(session, name) if a.shard_ids and not a.parent_ids]
        for stored in ownership.objects_of(session, [adapter.node for adapter in trained]):
            if stored.kind.startswith("checkpoint:"):
                ownership.drop_object(session, stored.owner, stored.kind)
    before = block_evaluations(stream)
    for shard in opening.served_shards(name):
        fit_shard(stream, shard)
    for adapter in trained:
        fit_trained(stream, adapter)
    return block_evaluations(stream) - before


def _subject(batch: int, group: int, number: int) -> str:
    return f"person-{batch}-{group}-{number}"


def synthetic_stream(folder: Path, batches: int, groups: int) -> Any:
    """Every batch draws on letters of its own, so that each of its groups asks for an adapter."""
    from infra import storage  # noqa: PLC0415
    from infra.settings import settings  # noqa: PLC0415
    from registry.sections import AdapterOptions, Columns, Gates, ShiftOptions  # noqa: PLC0415
    from registry.stream import Stream  # noqa: PLC0415

    rng = np.random.default_rng(0)
    for batch in range(batches):
        letters = [LETTERS[(batch * LETTERS_A_BATCH + n) % len(LETTERS)] for n in range(LETTERS_A_BATCH)]
        rows = [_row(rng, letters, batch, group, n) for group in range(groups) for n in range(ROWS)]
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(rows), sink)
        bucket, body = settings().inbox_bucket, sink.getvalue().to_pybytes()
        storage.s3().put_object(Bucket=bucket, Key=f"synthetic/{batch:02d}.parquet", Body=body)
    return Stream(
        name="synthetic",
        backbone=str(_backbone(folder / "backbone")),
        source=f"s3://{settings().inbox_bucket}/synthetic/*.parquet",
        columns=Columns(subject="who", group="team"),
        max_tokens=16,
        adapter=AdapterOptions(rank=4, last_layers=2, epochs=4),
        shift=ShiftOptions(permutations=199, min_rows=20),
        gates=Gates(accuracy_drop=1, forgetting=1),
    )


def _row(rng: np.random.Generator, letters: list[str], batch: int, group: int, number: int) -> dict[str, str]:
    label = number % 2
    words = " ".join(rng.choice(letters[label : label + 4], 28))
    who = _subject(batch, group, number // 2 % SUBJECTS)
    return {"id": f"{batch}-{group}-{number}", "who": who, "team": f"team-{group}", "text": words, "label": str(label)}


def _backbone(folder: Path) -> Path:
    import torch  # noqa: PLC0415
    from transformers import BertConfig, BertModel  # noqa: PLC0415
    from transformers.models.bert.tokenization_bert import BertTokenizer  # noqa: PLC0415

    torch.manual_seed(0)
    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS]
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=32, **sizes)).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shards", type=int, default=50)
    parser.add_argument("--tickets", type=int, default=20)
    parser.add_argument("--groups", type=int, default=10, help="access groups, each with a shard of every batch")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one JSON line")
    options = parser.parse_args()
    with home_of_its_own(options.threads) as folder:
        tell(measure(folder, options.shards, options.tickets, options.groups), options.json)


if __name__ == "__main__":
    main()
