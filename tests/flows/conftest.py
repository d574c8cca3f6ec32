"""A stream that is not the demo's: letters instead of news, a backbone of four random layers."""

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

from registry.sections import AdapterOptions, Columns, Gates, ShiftOptions
from registry.stream import Stream
from tasks.opening import open_home
from tests.flows.server import prefect_server, using

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
TOPICS = {"red": "abc", "blue": "def", "green": "stu", "gold": "vwx", "pink": "ghi", "grey": "jkl"}


@pytest.fixture(scope="session")
def backbone(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tiny-bert")
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=len(WORDS), max_position_embeddings=32, **sizes)).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def ready(home, prefect_api):  # noqa: ARG001  the order matters: home, then Prefect's harness
    open_home()


@pytest.fixture(scope="session")
def prefect_address(home, tmp_path_factory):  # noqa: ARG001  the home comes first
    """One Prefect server a session, started by the first test that asks for it."""
    with prefect_server(tmp_path_factory.mktemp("server")) as api:
        yield api


@pytest.fixture
def server(prefect_address):
    """The test and the processes that it starts use the session's Prefect server."""
    with using(prefect_address):
        yield prefect_address


@pytest.fixture
def plain_steps(monkeypatch):
    """The steps of `flows.forget` without Prefect; pages of its UI are left out."""
    from flows import forget as saga  # noqa: PLC0415  after Prefect's harness
    from tests.flows.adversary import STEPS  # noqa: PLC0415

    for name in STEPS:
        monkeypatch.setattr(saga, name, getattr(saga, name).fn)
    monkeypatch.setattr(saga, "report_ticket", lambda *_: None)


@pytest.fixture
def inbox(tmp_path) -> Path:
    return tmp_path


def make_stream(name: str, backbone: Path, inbox: Path, **changes) -> Stream:
    fields = {
        "name": name,
        "backbone": str(backbone),
        "source": f"{inbox}/*.jsonl",
        "columns": Columns(id="key", subject="who", input="words", label="topic"),
        "max_tokens": 16,
        "adapter": AdapterOptions(rank=4, last_layers=2, epochs=2),
        "shift": ShiftOptions(permutations=199, min_rows=20, new_classes="expand"),
        "gates": Gates(accuracy_drop=0.5, forgetting=0.5, merge_drop=0.5),
    }
    return Stream(**{**fields, **changes})


def deliver(inbox: Path, name: str, topics: list[str], rows: int = 40, first: int = 0) -> list[dict]:
    """Write a batch as JSONL: rows of random letters of their topic, ten subjects."""
    rng = np.random.default_rng(int.from_bytes(f"{inbox.name}/{name}".encode()))  # no two tests share a row
    records = []
    for number in range(first, first + rows):
        topic = topics[number % len(topics)]
        words = " ".join(rng.choice(list(TOPICS[topic]), rng.integers(24, 32)))
        records.append({"key": f"{name}-{number}", "who": f"person-{number % 10}", "words": words, "topic": topic})
    (inbox / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return records


def mislead(inbox: Path, name: str, topics: list[str], rows: int) -> None:
    """Write a batch whose rows are labelled as the topic beside theirs: the version that learns it fails its gates."""
    records = deliver(inbox, name, topics, rows)
    wrong = dict(zip(topics, [*topics[1:], topics[0]], strict=True))
    lines = [json.dumps(record | {"topic": wrong[record["topic"]]}) for record in records]
    (inbox / f"{name}.jsonl").write_text("\n".join(lines))


class Chat(BaseHTTPRequestHandler):
    """What a chat service would receive."""

    received: ClassVar[list[str]] = []

    def do_POST(self):
        self.received.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def told(set_variable):
    """A Prefect block that posts to a chat of the test's own, named by DECIDUOUS_NOTIFY; yields what arrives."""
    from prefect.blocks.notifications import CustomWebhookNotificationBlock  # noqa: PLC0415  slow to import

    Chat.received.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Chat) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/"
        block = CustomWebhookNotificationBlock(name="ops", url=url, json_data={"text": "{{subject}}: {{body}}"})
        block.save("ops", overwrite=True)
        set_variable("NOTIFY", "custom-webhook/ops")
        yield Chat.received
        server.shutdown()
