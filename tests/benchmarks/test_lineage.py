"""The figures themselves are for a quiet machine; here: the benchmark measures what it says, on both databases."""

import pytest

from benchmarks.lineage import measure
from tasks.policies.merging import MAX_COHORT
from tests.infra.postgres import cluster, find_binaries


def check(figures: dict) -> None:
    assert figures["records"] == 20_000
    assert 30 < figures["bytes_per_record"] < 250
    assert 0 < figures["closure_p50_ms"] <= figures["closure_p99_ms"]
    assert figures["closure_p99"] <= figures["batch_1000_closure"] == 300  # 400 subjects reach every adapter


def test_a_small_catalog_in_sqlite():
    figures = measure(20_000, None)
    assert figures["database"] == "sqlite"
    check(figures)


def test_with_a_shard_for_each_subject_a_closure_stays_small():
    """Under the default merge policy, over 1,000 shards: what depth and cohort are bounded for."""
    assert 2 < measure(200_000, None, shards_a_subject=1)["closure_p99"] <= MAX_COHORT


@pytest.mark.services
@pytest.mark.skipif(find_binaries() is None, reason="no PostgreSQL on this machine")
def test_a_small_catalog_in_postgresql():
    with cluster(find_binaries()) as address:
        figures = measure(20_000, f"{address}/postgres")
    assert figures["database"] == "postgresql"
    check(figures)
