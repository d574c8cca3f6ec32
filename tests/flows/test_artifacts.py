"""What a run leaves in Prefect beside its page: a bar while it trains, a table, and figures behind links that open."""

import json
import urllib.request

import pytest
from prefect import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.objects import Artifact

from flows.learn import learn
from infra import storage
from registry.sections import AdapterOptions
from tests.flows.conftest import deliver, make_stream

pytestmark = pytest.mark.usefixtures("ready")
PNG = b"\x89PNG\r\n\x1a\n"


def artifacts(*keys: str) -> dict[str, Artifact]:
    """The newest artifact of each key that has one."""
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[*keys])))
    return {each.key: each for each in sorted(found, key=lambda each: each.created)}


def figures_of(stream: str) -> dict[str, Artifact]:
    return artifacts(*(f"{figure}-{stream}" for figure in ("accuracy-matrix", "shift", "adapters")))


def test_training_that_takes_a_while_shows_a_bar_that_ends_full(backbone, inbox):
    slow = AdapterOptions(rank=4, last_layers=2, epochs=200, slices=4)
    deliver(inbox, "01", ["red", "blue"], rows=160)
    learn(make_stream("barred", backbone, inbox, adapter=slow))
    (bar,) = artifacts("training-adapter-barred-a1").values()
    assert (bar.type, bar.data, bar.description) == ("progress", 100.0, "training adapter:barred-a1")


def test_the_links_of_the_figures_open_where_the_store_keeps_its_address(s3, backbone, inbox, set_variable):
    access, secret = storage.keys()
    for name, value in {"ENDPOINT": s3.meta.endpoint_url, "ACCESS_KEY": access, "SECRET_KEY": secret}.items():
        set_variable(f"S3_{name}", value)
    for name, topics in (("01", ["red", "blue"]), ("02", ["green", "gold"])):
        deliver(inbox, name, topics)
    learn(make_stream("pictured", backbone, inbox))
    table = artifacts("accuracy-pictured")["accuracy-pictured"]
    assert table.type == "table"
    assert [[*row] for row in json.loads(table.data)] == [["after", "01"], ["after", "01", "02"]]
    figures = figures_of("pictured")
    assert len(figures) == 3
    for figure in figures.values():
        assert (figure.type, "pictured/2; link good for 7 days" in figure.description) == ("image", True)
        with urllib.request.urlopen(figure.data, timeout=30) as answer:
            assert answer.read().startswith(PNG), figure.key


def test_no_link_is_shown_where_the_store_moves_with_every_start(backbone, inbox):
    deliver(inbox, "01", ["red", "blue"])
    learn(make_stream("unlinked", backbone, inbox))
    assert artifacts("accuracy-unlinked")
    assert figures_of("unlinked") == {}
