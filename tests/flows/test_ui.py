"""What an operator sees in the Prefect UI, read in headless Chromium. PICTURES=FOLDER keeps the pictures."""

import os
from pathlib import Path

import pytest

from flows.learn import learn
from infra.orchestration import call_api
from tests.flows import pages
from tests.flows.conftest import deliver, make_stream
from tests.flows.server import runs_of

pytestmark = [
    pytest.mark.services,
    pytest.mark.timeout(1200),
    pytest.mark.usefixtures("ready"),
    pytest.mark.skipif(pages.find_browser() is None, reason="needs Chromium"),
]


def test_a_batch_shows_what_came_what_was_decided_and_what_it_did(server, backbone, inbox, tmp_path):
    stream = make_stream("shown", backbone, inbox)
    for name, topics in (("01", ["red", "blue"]), ("02", ["green", "gold"])):
        deliver(inbox, name, topics, rows=120)
    *_, last = learn(stream)
    folder, ui = Path(os.environ.get("PICTURES", tmp_path)), server.removesuffix("/api")

    (run,) = [run for run in runs_of("learn-batch") if "shown: 02" in run.name]
    shown = ("shown: 02: expand", "Completed")
    pages.take_picture(f"{ui}/runs/flow-run/{run.id}", folder / "run.png", tmp_path / "profile", shown)

    wanted = {"artifacts": {"key": {"any_": [f"batch-{last}"]}}}
    (artifact,) = call_api(server, "/artifacts/filter", wanted)
    page = f"{ui}/artifacts/artifact/{artifact['id']}"
    shown = ("shown: 02: expand", "120 rows", "against alpha 0.01", "on earlier batches", "Accuracy by batch")
    pages.take_picture(page, folder / "batch.png", tmp_path / "profile", shown, 1500)
