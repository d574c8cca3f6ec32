"""The registered champion behind `mlflow models serve`, as a user starts it: raw text and images in, answers out."""

from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from io import BytesIO
from queue import SimpleQueue
from threading import Event
from urllib.error import HTTPError

import mlflow
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from transformers import ViTConfig, ViTModel

from benchmarks.served import ask, serving
from flows.learn import learn
from infra import tracking
from registry import versions
from registry.sections import AdapterOptions, Columns, Gates, ShiftOptions, TaskType
from registry.stream import Stream
from tasks.alias_moves import move_alias
from tasks.manifests import load_manifest
from tasks.packaging import REQUIREMENTS
from tasks.registration import register_change
from tasks.serving import Answerer
from tests.flows.adversary import serve_all
from tests.flows.conftest import deliver, make_stream

pytestmark = [pytest.mark.services, pytest.mark.usefixtures("ready")]
KEYS = {"label", "score", "adapter", "adapters", "version"}


def picture(rng, dark):
    pixels = rng.integers(0, 100, (16, 16, 3)) + (0 if dark else 150)
    sink = BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(sink, "PNG")
    return sink.getvalue()


@pytest.fixture(scope="module")
def letters(backbone, tmp_path_factory, ready):  # noqa: ARG001  the home comes first
    inbox = tmp_path_factory.mktemp("served-letters")
    stream = make_stream("served-letters", backbone, inbox)
    deliver(inbox, "01", ["red", "blue"])
    deliver(inbox, "02", ["green", "gold"])
    learn(stream)
    serve_all(stream)  # letters are too easy for an adapter to earn its place
    register_change.fn(stream, "test", "every adapter serves", None)
    move_alias(stream.name, versions.CHAMPION, 3, "test", "every adapter serves")
    return stream


@pytest.fixture(scope="module")
def pictures(tmp_path_factory, ready):  # noqa: ARG001  the home comes first
    inbox, rng = tmp_path_factory.mktemp("served-pictures"), np.random.default_rng(0)
    config = ViTConfig(
        image_size=16, patch_size=8, hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(inbox / "vit")
    rows = {
        "id": [str(n) for n in range(60)],
        "shown": [picture(rng, n % 2) for n in range(60)],
        "label": ["light" if n % 2 == 0 else "dark" for n in range(60)],
    }
    pq.write_table(pa.table(rows), inbox / "01.parquet")
    stream = Stream(
        name="served-pictures",
        task=TaskType.IMAGE,
        backbone=str(inbox / "vit"),
        source=f"{inbox}/*.parquet",
        columns=Columns(input="shown"),
        adapter=AdapterOptions(rank=4, last_layers=2, epochs=2),
        shift=ShiftOptions(permutations=199, min_rows=20),
        gates=Gates(accuracy_drop=1, forgetting=1),
    )
    learn(stream)
    return stream


def champion(stream):
    from infra import database  # noqa: PLC0415

    with database.transaction() as session:
        return versions.alias_of(session, stream.name, versions.CHAMPION)


def told(stream, raw, number=None):
    """What the library says, in the form in which the server answers."""
    number = number or champion(stream)
    found = Answerer(load_manifest(stream.name, number)).answer(raw, [])
    return [
        (label, adapter or "", ",".join(visits), number)
        for label, adapter, visits in zip(found.labels, found.adapter_ids, found.visits, strict=True)
    ]


def as_told(answers):
    assert all(set(answer) == KEYS for answer in answers)
    assert all(0 < answer["score"] < 2 for answer in answers)
    return [tuple(answer[key] for key in ("label", "adapter", "adapters", "version")) for answer in answers]


def test_the_champion_answers_raw_texts_of_many_clients(letters, tmp_path):
    texts = [f"{a} {b} {a}" for a in "abcdefstuvwx" for b in "adsv"]
    expected = told(letters, [text.encode() for text in texts])
    assert {adapter for _, adapter, _, _ in expected} - {""}  # adapters do take part
    with serving(f"models:/{letters.name}@champion", tmp_path / "serve.log") as address:
        assert as_told(ask(address, texts)) == expected
        with ThreadPoolExecutor(50) as clients:
            each = list(clients.map(lambda text: ask(address, [text]), texts))
        assert [answer for (answer,) in map(as_told, each)] == expected
        with pytest.raises(HTTPError) as refused:
            ask(address, texts[:1], groups="strangers")
        assert "serves none of them" in refused.value.read().decode()
        assert as_told(ask(address, texts[:1])) == expected[:1]


def test_a_served_model_swaps_to_a_moved_champion_without_dropping_or_mixing_a_request(letters, tmp_path, set_variable):
    set_variable("FOLLOW", "champion")
    set_variable("SERVING_SECONDS", 0)
    texts = [f"{a} {b} {a}" for a in "abstvw" for b in "adsv"]
    expected = {number: told(letters, [text.encode() for text in texts], number) for number in (3, 1)}
    answered, done = SimpleQueue(), Event()

    def ask_on(address):
        while not done.is_set():
            found = as_told(ask(address, texts))
            number = found[0][-1]
            assert found == expected[number]
            answered.put(number)

    with (
        serving(f"models:/{letters.name}@champion", tmp_path / "serve.log") as address,
        ThreadPoolExecutor(8) as clients,
    ):
        asking = [clients.submit(ask_on, address) for _ in range(8)]
        try:
            for number in (3, 1, 3):
                move_alias(letters.name, versions.CHAMPION, number, "test", "to and fro")
                while answered.get(timeout=120) != number:
                    pass
        finally:
            done.set()
        assert [each.result() for each in asking] == [None] * 8


def test_a_served_model_keeps_its_version_unless_it_is_told_to_follow(letters, tmp_path, set_variable):
    set_variable("SERVING_SECONDS", 0)
    with serving(f"models:/{letters.name}@champion", tmp_path / "serve.log") as address:
        move_alias(letters.name, versions.CHAMPION, 1, "test", "to and fro")
        try:
            assert ask(address, ["a b"])[0]["version"] == 3
        finally:
            move_alias(letters.name, versions.CHAMPION, 3, "test", "to and fro")


def test_the_champion_answers_images(pictures, tmp_path):
    rng = np.random.default_rng(1)
    raw = [picture(rng, dark) for dark in (True, False, True)]
    with serving(f"models:/{pictures.name}@champion", tmp_path / "serve.log") as address:
        assert as_told(ask(address, [b64encode(each).decode() for each in raw])) == told(pictures, raw)
        with pytest.raises(HTTPError) as refused:
            ask(address, [b64encode(each).decode() for each in (raw[0], b"no picture")])
        assert "row 1 cannot be answered: image cannot be decoded" in refused.value.read().decode()


@pytest.mark.parametrize("which", ["letters", "pictures"])
def test_the_model_carries_signature_example_and_pinned_requirements(which, request):
    stream = request.getfixturevalue(which)
    tracking.prepare_tracking()
    uri = f"models:/{stream.name}@champion"
    model = mlflow.pyfunc.load_model(uri)
    signature = model.metadata.signature
    assert [column.name for column in signature.outputs.inputs] == ["label", "score", "adapter", "adapters", "version"]
    assert [param.name for param in signature.params.params] == ["groups", "caller"]
    assert len(model.predict(model.input_example)) == 1
    with open(mlflow.artifacts.download_artifacts(f"{uri}/requirements.txt")) as file:
        pinned = dict(line.strip().split("==") for line in file if line.strip())
    assert {name: version(name).split("+")[0] for name in REQUIREMENTS}.items() <= pinned.items()
