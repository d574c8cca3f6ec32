"""The log of answers survives a torn line and a full disk, and is read from its end."""

import os
from datetime import UTC, datetime, timedelta
from itertools import count

import pytest
import torch

from infra.settings import settings
from tasks.learning.composition import Prediction
from tasks.prediction_log import BLOCK, note_prediction, predictions_since

NAMES = (f"noted{number}" for number in count())
BEGINNING = datetime.min.replace(tzinfo=UTC)


@pytest.fixture
def stream():
    """The name of a stream without a log."""
    return next(NAMES)


def log_of(stream):
    return settings().home / "predictions" / f"{stream}.jsonl"


def note(stream, rows):
    note_prediction(stream, 1, "open", Prediction(["red"] * rows, torch.zeros(rows, 1), [None] * rows, [("a",)] * rows))


def rows_since(stream, since=BEGINNING):
    return [line["rows"] for line in predictions_since(stream, since)]


def test_a_stream_that_nobody_asked_has_no_line(stream):
    assert rows_since(stream) == []


def test_lines_come_newest_first_across_blocks_and_torn_ones_are_left_out(stream, caplog):
    for rows in range(3):
        note(stream, rows)
        with log_of(stream).open("a") as file:
            file.write('{"at": "2026-\n' + "x" * BLOCK + "\n")
    with log_of(stream).open("a") as file:
        file.write('{"at": ')
    with caplog.at_level("INFO", logger="deciduous"):
        assert rows_since(stream) == [2, 1, 0]
    assert f"7 lines of {log_of(stream)} cannot be read and are left out" in caplog.text


def test_what_lies_before_the_first_older_line_is_not_read(stream, caplog):
    log_of(stream).parent.mkdir(exist_ok=True)
    log_of(stream).write_text("torn\n")
    note(stream, 1)
    with caplog.at_level("INFO", logger="deciduous"):
        assert rows_since(stream, datetime.now(UTC) + timedelta(seconds=1)) == []
    assert "cannot be read" not in caplog.text


def test_a_disk_that_takes_a_part_is_given_the_rest(stream, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: write(handle, data[:10]))
    note(stream, 7)
    monkeypatch.undo()
    assert rows_since(stream) == [7]
