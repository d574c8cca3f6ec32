"""Does the number of serving adapters level off, and at what price? `python -m benchmarks.growth [--json]`

A stream of recurring domains runs through the product's own steps, without Prefect and MLflow: once with a budget of
adapters, once without; both are alike until the first merge. Accuracy is on articles that no batch held, in every
domain of the stream, at the end.
`--compare-merges` adds what merging the two closest adapters of the unmerged stream costs by each method, and
`--compare-forms` what storing its adapters at each precision does to answers and bytes.
"""

import argparse
import logging
import os
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.growth_product import (
    adapters_by_form,
    answered,
    bytes_serving,
    counted_decisions,
    learn,
    merges_by_operator,
    num_serving,
    open_questions,
    stream_in,
)
from benchmarks.growth_stream import News, domains
from benchmarks.running import say, tell
from infra import seaweed
from infra.settings import settings
from registry.records import DecisionKind
from tasks import opening
from tasks.learning import heads

FIGURES = ("bytes", "accuracy", "questions", "growth", "decisions", "cpu_seconds")

BUDGET = 5
"""Half of the default domains, and a sixth of the batches; set before the first run."""


def main(arguments: list[str] | None = None) -> None:
    """Run the stream with and without consolidation and print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=30)
    parser.add_argument("--domains", type=int, default=10, help="at most 10; each recurs batches / domains times")
    parser.add_argument("--rows", type=int, default=40, help="articles of a batch; the product holds some out itself")
    parser.add_argument("--questions", type=int, default=20, help="articles asked in each domain, never delivered")
    parser.add_argument("--budget", type=int, default=BUDGET, help="consolidation.max_adapters")
    parser.add_argument("--operator", default="cat", help="consolidation.operator")
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--blocks", type=int, default=2, help="of MiniLM's six, the first")
    parser.add_argument("--last-layers", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument(
        "--random-features", type=int, default=256, help="of each view of the heads; the product has 512"
    )
    parser.add_argument("--only", choices=("kept", "never"), help="one of the two runs")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--compare-merges", action="store_true")
    parser.add_argument("--compare-forms", action="store_true")
    parser.add_argument("--verbose", action="store_true", help="every step's line on stderr")
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of a table")
    options = parser.parse_args(arguments)
    logging.getLogger("deciduous").setLevel(logging.INFO if options.verbose else logging.WARNING)
    logging.getLogger("deciduous").addHandler(logging.StreamHandler(sys.stderr))
    torch.set_num_threads(1)
    heads.RANDOM_FEATURES = options.random_features
    with TemporaryDirectory(prefix="deciduous-", ignore_cleanup_errors=True) as folder:
        try:
            figures = measure(Path(folder), options)
        finally:
            for name in ("kept", "never"):
                seaweed.stop_now(Path(folder) / name / "home")
    tell(figures, options.json)


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The figures of both runs, those without consolidation under names that say so."""
    figures: dict[str, Any] = {"batches": options.batches}
    if options.only != "never":
        kept = run(folder, options, "kept", options.budget)
        figures |= {"adapters_serving": kept["adapters"], **{name: kept[name] for name in FIGURES}}
    if options.only != "kept":
        never = run(folder, options, "never", None)
        figures |= {f"{name}_without": never[name] for name in ("adapters", *FIGURES)}
        stream, asked = never["stream"], never["asked"]
        if options.compare_forms:
            figures["forms"] = adapters_by_form(stream, *asked)
        if options.compare_merges:
            figures["merges"] = merges_by_operator(stream)
    return figures


def run(folder: Path, options: argparse.Namespace, name: str, budget: int | None) -> dict[str, Any]:
    """Learn the whole stream, and answer from what serves at the end.

    In a home of its own and under one name: splits and seeds follow from a stream's name, so that both runs are alike
    until the first merge.
    """
    inbox = folder / name
    inbox.mkdir()
    os.environ["DECIDUOUS_HOME"] = f"{inbox}/home"
    settings.cache_clear()
    opening.open_home()
    began, news, among = time.process_time(), News(options.seed), domains(options.domains)
    stream = stream_in(inbox, "growth", budget, options)
    growth = []
    for domain in news.deliver(inbox, options.batches, options.rows, among):
        learn(stream)
        growth.append(num_serving(stream))
        say(f"{name} {len(growth)}/{options.batches} {domain.name}: {growth[-1]} adapters serve")
    decided = counted_decisions(stream)
    if set(decided) <= {DecisionKind.HOLD}:
        raise SystemExit(
            f"nothing serves: all {options.batches} batches were held, with too few --rows ({options.rows})"
        )
    asked = open_questions(stream, [row for domain in among for row in news.questions(domain, options.questions)])
    return {
        "stream": stream,
        "asked": asked,
        "adapters": growth[-1],
        "growth": growth,
        "bytes": bytes_serving(stream),
        "accuracy": round(answered(stream, *asked), 4),
        "questions": len(asked[1]),
        "decisions": decided,
        "cpu_seconds": round(time.process_time() - began, 1),
    }


if __name__ == "__main__":
    main()
