"""The figures themselves are for a quiet machine; here: every field is there, the headline is the last count's."""

import json

import pytest

from benchmarks import inference

FIELDS = {"adapters", "last_layers", "relative_throughput", "vs_peft", "vs_merged_copies", "bytes_per_adapter"}
SERVED = {"p50_ms", "p99_ms", "errors", "clients", "cold_load_s"}


def figures(capsys, *arguments: str) -> dict:
    inference.main(["--adapters", "1,2", "--records", "16", "--repeats", "1", "--json", *arguments])
    found: dict = json.loads(capsys.readouterr().out)
    return found


def check(found: dict) -> None:
    rows = [*found["others"], found]
    assert [(row["adapters"], row["last_layers"]) for row in rows] == [(1, 2), (2, 4), (2, 2)]
    assert all(row.keys() >= FIELDS for row in rows)
    assert all(row["relative_throughput"] > 0 and row["vs_peft"] > 0 for row in rows)
    assert rows[1]["floor"] < rows[2]["floor"] < 1  # deeper adapters run more blocks


def test_throughput_against_the_backbone_and_peft_at_two_depths(capsys):
    found = figures(capsys, "--skip-served")
    check(found)
    assert not found.keys() & SERVED


@pytest.mark.services
def test_the_served_model_under_its_clients(capsys, set_variable, tmp_path):
    set_variable("HOME", tmp_path)  # the benchmark sets both anew; the session's come back
    set_variable("THREADS", 1)
    found = figures(capsys)
    check(found)
    assert found.keys() >= SERVED
    assert (found["errors"], found["clients"]) == (0, 50)
    assert 0 < found["p50_ms"] <= found["p99_ms"]
