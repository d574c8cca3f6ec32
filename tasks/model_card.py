"""What a version's page in MLflow says and shows."""

from bisect import bisect_right
from collections.abc import Sequence
from hashlib import sha256
from math import nan

from matplotlib.figure import Figure

from infra import database
from registry import adapters, catalog, contents, decision_log, models, ownership, versions
from registry.figures import draw_accuracy, draw_growth, draw_shift
from registry.records import Adapter, Decision, Shard
from registry.sections import TaskType
from registry.stream import Stream
from tasks import links
from tasks.evaluation import Score, total
from tasks.forms import named
from tasks.manifests import Manifest
from tasks.markdown import table_row

DRAWN = 12
"""Batches, or adapters, in a figure: a stream grows for years, what a person can read does not."""


def describe_version(
    stream: Stream, manifest: Manifest, cause: str, reason: str, shards: Sequence[Shard], scores: dict[int, Score]
) -> str:
    """A model card in Markdown: why this version exists, what it rests on, how good it is. No personal data.

    MLflow's list of versions shows the first line alone."""
    run = links.prefect_run()
    overall = total(scores.values())
    alone = _without_adapters(stream.task)
    measured = (
        f"Held-out accuracy **{overall.accuracy:.3f}** on {overall.rows} rows; "
        f"the {alone} alone {overall.exact_accuracy:.3f}."
    )
    lines = [
        reason,
        "",
        f"**From:** `{cause}` ({_commands(cause)})" + (f", registered by the Prefect run {run}" if run else ""),
        "",
        f"{measured if overall.rows else 'Not measured.'} Backbone `{stream.backbone}`, frozen; "
        f"deletion epoch {manifest['epoch']}.",
        "",
        f"| batch | group | rows | held-out accuracy | {alone} |",
        "| --- | --- | ---: | ---: | ---: |",
        *_accuracies(shards, scores),
        "",
        *_lineage(manifest, alone),
        "",
        "Figures and data sets: the source run, under Artifacts and Datasets used.",
        "",
        f'Load: `mlflow.pyfunc.load_model("models:/{stream.name}@champion").predict([...]{_holding(manifest)})`; '
        "inputs are raw.",
    ]
    return "\n".join(lines)


def _without_adapters(task: TaskType) -> str:
    """What an adapter has to beat, and what answers where none serves. A language model has no head of its own."""
    return "frozen backbone" if task == TaskType.LANGUAGE else "exact head"


def _holding(manifest: Manifest) -> str:
    """Where there are several groups, who asks has to say which they hold."""
    return ', params={"groups": "GROUP,..."}' if len({shard["group"] for shard in manifest["shards"]}) > 1 else ""


def _commands(cause: str) -> str:
    """What tells more of a cause: of a retirement each of the adapters."""
    return ", ".join(f"`deciduous describe {id_}`" for id_ in cause.partition(":")[2].split("+"))


def _accuracies(shards: Sequence[Shard], scores: dict[int, Score]) -> list[str]:
    """A line for each of the newest shards, one for all before them: MLflow reads every card to number a version."""
    earlier, newest = shards[:-DRAWN], shards[-DRAWN:]
    lines = [_line(shard, scores[shard.shard_id]) for shard in newest]
    if earlier:
        score, rows = total([scores[shard.shard_id] for shard in earlier]), sum(shard.rows for shard in earlier)
        lines.insert(0, table_row((f"{len(earlier)} earlier shards", "", rows, *_measured(score))))
    return lines


def _line(shard: Shard, score: Score) -> str:
    return table_row((shard.batch_name, shard.group, shard.rows, *_measured(score)))


def _measured(score: Score) -> tuple[str, str]:
    """Nothing where a deletion took every held-out row: it is not that all answers were wrong."""
    return (f"{score.accuracy:.3f}", f"{score.exact_accuracy:.3f}") if score.rows else ("", "")


def _lineage(manifest: Manifest, alone: str) -> list[str]:
    """Which records shaped the newest serving adapters, by batch: what a deletion from one of them reaches."""
    if not manifest["adapters"]:
        return [f"No adapter serves: the {alone} answers alone."]
    every = [adapter["adapter_id"] for adapter in manifest["adapters"]]
    with database.transaction() as session:
        serving = adapters.get_adapters(session, every[-DRAWN:])
        known = contents.shards(session, {i for each in serving for i in (*each.shard_ids, *each.serves)})
        stored = ownership.objects_of(session, [each.node for each in serving])
    size = {o.owner: o.size for o in stored if o.kind == "weights"}
    names = {shard.shard_id: shard.batch_name for shard in known}
    lines = ["**Which batches shaped what serves:**", ""]  # MLflow sets two tables without a gap
    lines += ["| serving adapter | group | trained on | merged from | serves | weights |", f"|{' --- |' * 6}"]
    if earlier := len(every[:-DRAWN]):
        lines.append(table_row((f"{earlier} earlier adapters", *[""] * 5)))
    for each in serving:
        trained, served = ([names[i] for i in ids if i in names] for ids in (each.shard_ids, each.serves))
        cells = [
            each.adapter_id,
            each.group,
            *map(_newest, (trained, each.parent_ids, served)),
            f"{_form(each)}, {size[each.node]:,} bytes",
        ]
        lines.append(table_row(cells))
    return lines


def _newest(names: Sequence[str]) -> str:
    """A batch that is reused joins its adapter: it may serve a thousand."""
    earlier = len(names[:-DRAWN])
    return ", ".join([f"{earlier} earlier"] * (earlier > 0) + [*names[-DRAWN:]]) or "-"


def _form(adapter: Adapter) -> str:
    """Precision and rank, and what the smaller form cost on the adapter's own held-out rows."""
    form = adapter.recipe.get("form", {"precision": "fp32", "rank": adapter.recipe.get("rank", "?")})
    lost = f", {form['accuracy'] - form['accuracy_whole']:+.3f} against fp32" if "accuracy" in form else ""
    return f"{named(form)}{lost}"


def adapter_bytes(manifest: Manifest) -> int:
    """What the weights of the serving adapters take in the store."""
    with database.transaction() as session:
        stored = ownership.objects_of(session, [f"adapter:{adapter['adapter_id']}" for adapter in manifest["adapters"]])
    return sum(each.size for each in stored if each.kind == "weights")


def data_sets(manifest: Manifest, shards: Sequence[Shard]) -> list[models.DataSet]:
    """The shards that a version rests on, as MLflow lists inputs: counts and digests, no name of a record.

    The newest ones by name, all before them as one; the manifest names every shard.
    """
    digests = {shard["shard_id"]: shard["statistics"]["sha256"] for shard in manifest["shards"]}
    used = [shard for shard in shards if shard.shard_id in digests]
    earlier, newest = used[:-DRAWN], used[-DRAWN:]
    sets = [
        models.DataSet(
            name=f"{shard.batch_name}/{shard.group}",
            digest=digests[shard.shard_id][:16],
            source=f"catalog:batch/{shard.batch_id}/shard/{shard.shard_id}",
            profile=_counts([shard]),
        )
        for shard in newest
    ]
    if earlier:
        together = sha256("".join(digests[shard.shard_id] for shard in earlier).encode()).hexdigest()
        source = f"catalog:shards before {newest[0].shard_id}"
        sets.insert(0, models.DataSet(f"{len(earlier)} earlier shards", together[:16], source, _counts(earlier)))
    return sets


def _counts(shards: Sequence[Shard]) -> dict[str, int]:
    return {name: sum(getattr(shard, name) for shard in shards) for name in ("rows", "held_out", "labelled")}


def version_tags(
    manifest: Manifest, cause: str, decisions: Sequence[Decision], scores: dict[int, Score]
) -> dict[str, object]:
    """What MLflow's list of versions shows beside the description: short, for its columns are narrow."""
    kinds = list(dict.fromkeys(decision.kind.value for decision in decisions))
    measured = {"accuracy": f"{total(scores.values()).accuracy:.3f}"} if scores else {}
    return {
        "change": " + ".join(kinds) or cause.partition(":")[0],
        **measured,
        "adapters": len(manifest["adapters"]),
        "epoch": manifest["epoch"],
        "cause": cause,
    }


def draw_figures(
    stream: Stream, decisions: Sequence[Decision], shards: Sequence[Shard], scores: dict[int, Score]
) -> dict[str, Figure]:
    """Shift heat map of the batch, accuracy matrix of all versions, growth of adapters."""
    shown = list(dict.fromkeys(shard.batch_id for shard in shards))[-DRAWN:]
    names, earlier = accuracy_matrix(stream.name, shown)
    newest = [total([scores[s.shard_id] for s in shards if s.batch_id == b]) for b in shown]
    rows = [(f"after {name}", cells) for name, cells in earlier]
    rows.append(("this version", [score.accuracy if score.rows else nan for score in newest]))
    figures = {"accuracy_matrix.png": draw_accuracy(rows, names)}
    compared = next((decision for decision in decisions if decision.z_scores), None)
    if compared is not None:
        figures["shift.png"] = draw_shift(nearest_looks(compared))
    figures["adapters.png"] = draw_growth(*growth(stream.name))
    return figures


def nearest_looks(decision: Decision) -> dict[str, dict[str, float]]:
    """Layer -> adapter -> z-score, of the adapters that the batch deviates from least."""
    shown = decision.closest()[:DRAWN]
    return {layer: {name: row[name] for name in shown if name in row} for layer, row in decision.z_scores.items()}


def growth(stream: str) -> tuple[dict[str, list[int]], list[str]]:
    """How many adapters were born until each batch, and the batches' names: flat where batches are reused."""
    with database.transaction() as session:
        batches = catalog.last_batches(session, stream, DRAWN)
        born = decision_log.expansions(session, stream)
    return {"adapters": [bisect_right(born, batch.ordinal) for batch in batches]}, [batch.name for batch in batches]


def accuracy_matrix(stream: str, batch_ids: Sequence[str]) -> tuple[list[str], list[tuple[str, list[float]]]]:
    """Names of these batches; and of each that led to a version, in the order of those, its name and the accuracy on
    every batch right after it: not a number on what came later, and where there was no held-out row."""
    with database.transaction() as session:
        names = catalog.batch_names(session, batch_ids)
        found = [(b, versions.find_by_cause(session, stream, f"batch:{b}")) for b in batch_ids]
        led = sorted((version.version, batch_id) for batch_id, version in found if version is not None)
        rows = [(names[batch_id], versions.accuracies(session, stream, number, batch_ids)) for number, batch_id in led]
    measured = [(name, {b: accuracy for b, (accuracy, _, n) in cells.items() if n}) for name, cells in rows]
    return [names[b] for b in batch_ids], [(name, [cells.get(b, nan) for b in batch_ids]) for name, cells in measured]
