"""What must not serve is refused by its name: strange weights, changed bytes, pickles, another backbone."""

import json
import pickle
import shutil
from dataclasses import replace

import pytest
import torch

from flows.learn import learn
from infra import database, storage
from infra.settings import settings
from registry import contents, ownership, versions
from registry.adapters import adapters
from registry.errors import BadWeightsError, StateError, TamperedBlobError, UnsupportedBackboneError
from registry.sections import AdapterOptions
from registry.versions import CHAMPION
from tasks import backbones, blob_cache, blobs
from tasks.adapters import fit_closed_forms, train_adapter
from tasks.learning.adapters import AdapterSpec, check_weights
from tasks.learning.backbones import load_backbone
from tasks.learning.language.backbones import load_language_backbone
from tasks.learning.language.lora import AdaptedModel, new_lora
from tasks.manifests import load_manifest
from tasks.serving import Answerer
from tests.flows.conftest import deliver, make_stream
from tests.tiny_language import save_tiny_llama

pytestmark = pytest.mark.usefixtures("ready")
WIDTH, RANK, BLOCKS = 32, 4, (2, 3)


def weights():
    shapes = {"down.weight": (RANK, WIDTH), "down.bias": (RANK,), "up.weight": (WIDTH, RANK), "up.bias": (WIDTH,)}
    return {f"blocks.{b}.{place}": torch.zeros(shape) for b in BLOCKS for place, shape in shapes.items()}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"blocks.2.up.weight": torch.zeros(WIDTH, 5)}, r"blocks\.2\.up\.weight is torch.float32 \(32, 5\), expected"),
        ({"blocks.2.up.bias": torch.zeros(WIDTH, dtype=torch.int64)}, r"blocks\.2\.up\.bias is torch.int64"),
        ({"blocks.3.down.bias": torch.full((RANK,), torch.nan)}, r"blocks\.3\.down\.bias holds NaN or infinity"),
        ({"blocks.3.up.bias": torch.full((WIDTH,), torch.inf)}, r"blocks\.3\.up\.bias holds NaN or infinity"),
        ({"blocks.9.up.bias": torch.zeros(WIDTH)}, r"1 tensors are missing or strange, first blocks\.9\.up\.bias"),
        ({"blocks.2.up.bias": None}, r"1 tensors are missing or strange, first blocks\.2\.up\.bias"),
    ],
)
def test_strange_weights_are_refused_by_the_name_of_the_tensor(change, match):
    check_weights(weights(), BLOCKS, WIDTH, "adapter a1")
    strange = {name: tensor for name, tensor in {**weights(), **change}.items() if tensor is not None}
    with pytest.raises(BadWeightsError, match=f"adapter a1: {match}.* train it again"):
        check_weights(strange, BLOCKS, WIDTH, "adapter a1")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda tensor: torch.full_like(tensor, torch.nan), r"{place} holds NaN or infinity"),
        (lambda tensor: tensor[:, :-1], r"{place} is \(.*\), expected \("),
        (lambda _: None, r"1 tensors are missing or strange, first {place}"),
    ],
)
def test_strange_lora_weights_are_refused_by_the_name_of_the_tensor(tmp_path, change, match):
    backbone = load_language_backbone(str(save_tiny_llama(tmp_path)))
    model = AdaptedModel(backbone, AdapterSpec("lora", rank=4, last_layers=2))
    whole = new_lora(model, seed=1)
    model.load("whole", whole)
    place = min(whole)
    strange = {n: t for n, t in {**whole, place: change(whole[place])}.items() if t is not None}
    with pytest.raises(BadWeightsError, match=f"adapter a1: {match.format(place=place)}.* train it again"):
        model.load("a1", strange)


@pytest.fixture(scope="module")
def learned(ready, backbone, tmp_path_factory):  # noqa: ARG001
    """A stream with a champion that serves one adapter, on a backbone folder of its own."""
    inbox = tmp_path_factory.mktemp("models")
    own = shutil.copytree(backbone, inbox / "backbone")
    stream = make_stream("models", own, inbox)
    deliver(inbox, "01", ["red", "blue"])
    learn(stream)
    with database.transaction() as session:
        (adapter,) = adapters(session, stream.name)
        stored = ownership.get_object(session, adapter.node, "weights")
        champion = versions.alias_of(session, stream.name, CHAMPION)
    return stream, adapter, stored, load_manifest(stream.name, champion)


def serving(manifest, adapter, stored):
    """The manifest with the adapter's weights where `stored` lies."""
    with database.transaction() as session:
        named = {kind: ownership.get_object(session, adapter.node, kind) for kind in ("descriptor",)}
    entry = {
        "adapter_id": adapter.adapter_id,
        "group": adapter.group,
        "weights": {"key": stored.key, "sha256": stored.sha256},
        "descriptor": {"key": named["descriptor"].key, "sha256": named["descriptor"].sha256},
        "statistics": [],
    }
    return {**manifest, "adapters": [entry], "waiting": []}


class Bomb:
    """Unpickling it writes a file."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return (open, (str(self.place), "w"))


@pytest.mark.parametrize("write", [pickle.dumps, "torch"])
def test_a_pickle_is_never_opened(learned, tmp_path, write):
    stream, adapter, _, manifest = learned
    bomb = tmp_path / "exploded"
    if write == "torch":
        torch.save({"blocks.2.up.bias": Bomb(bomb)}, tmp_path / "weights.pt")
        data = (tmp_path / "weights.pt").read_bytes()
    else:
        data = write(Bomb(bomb))
    forged = blobs.store(blobs.prefix(stream.name, adapter.group), adapter.node, "weights", data)
    with pytest.raises(BadWeightsError, match=f"{forged.key} is no safetensors file"):
        Answerer(serving(manifest, adapter, forged))
    with pytest.raises(BadWeightsError, match=forged.key):
        blobs.read_tensors(forged.key, forged.sha256)
    assert not bomb.exists()


def test_changed_bytes_are_refused_by_the_name_of_the_object(learned):
    _, adapter, stored, manifest = learned
    s3, bucket = storage.s3(), settings().artifact_bucket
    whole = s3.get_object(Bucket=bucket, Key=stored.key)["Body"].read()
    blob_cache.retain([])
    changed = s3.put_object(Bucket=bucket, Key=stored.key, Body=whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        with pytest.raises(TamperedBlobError, match=f"{stored.key} hashes to .* restore the object"):
            Answerer(serving(manifest, adapter, stored))
    finally:
        s3.delete_object(Bucket=bucket, Key=stored.key, VersionId=changed["VersionId"])
    Answerer(serving(manifest, adapter, stored))


def test_a_local_copy_that_was_changed_is_fetched_again(learned):
    _, adapter, stored, manifest = learned
    Answerer(serving(manifest, adapter, stored))
    (copy,) = (settings().home / "blobs").glob(f"*/{stored.sha256}.safetensors")
    copy.chmod(0o600)
    copy.write_bytes(b"changed")
    Answerer(serving(manifest, adapter, stored))
    assert copy.read_bytes() != b"changed"


def test_weights_of_another_shape_or_that_diverged_are_neither_stored_nor_served(learned):
    stream, adapter, _, manifest = learned
    poor = {**weights(), "blocks.3.up.bias": torch.full((WIDTH,), torch.nan)}
    forged = blobs.store_tensors(blobs.prefix(stream.name, adapter.group), adapter.node, "weights", poor)
    with pytest.raises(
        BadWeightsError, match=rf"adapter {adapter.adapter_id} of 'models': blocks\.3\.up\.bias holds NaN"
    ):
        Answerer(serving(manifest, adapter, forged))
    other = replace(adapter, adapter_id="diverged")
    with pytest.raises(BadWeightsError, match=r"adapter diverged: .*a lower adapter\.learning_rate"):
        fit_closed_forms(stream, other, poor)
    with database.transaction() as session:
        assert [a.adapter_id for a in adapters(session, stream.name)] == [adapter.adapter_id]


def test_training_that_diverges_registers_nothing(backbone, inbox):
    options = AdapterOptions(rank=4, last_layers=2, epochs=2, learning_rate=1e30)
    stream = make_stream("diverging", backbone, inbox, adapter=options)
    deliver(inbox, "01", ["red", "blue"])
    with pytest.raises(BadWeightsError, match=r"lower adapter\.learning_rate"):
        learn(stream)
    with database.transaction() as session:
        assert versions.versions(session, stream.name) == []
        assert adapters(session, stream.name) == []


def test_another_backbone_under_the_same_name_is_refused_everywhere(learned, tmp_path):
    stream, adapter, _, manifest = learned
    folder = settings().home / "other"
    shutil.copytree(stream.backbone, folder)
    model = load_backbone(str(folder)).model
    with torch.no_grad():
        next(model.parameters()).add_(1)
    model.save_pretrained(folder)
    kept = shutil.copytree(stream.backbone, tmp_path / "kept")
    shutil.copytree(folder, stream.backbone, dirs_exist_ok=True)
    backbones._open.cache_clear()
    try:
        with pytest.raises(StateError, match=r"'models' was trained on backbone digest .* restore that backbone"):
            learn(stream)
        with pytest.raises(StateError, match=r"now has .* restore that backbone"):
            Answerer(manifest)
        with database.transaction() as session:
            (shard,) = contents.shards(session, adapter.shard_ids)
        with pytest.raises(StateError, match="restore that backbone"):
            train_adapter.fn(stream, shard, "on-a-worker")
    finally:
        shutil.copytree(kept, stream.backbone, dirs_exist_ok=True)
        backbones._open.cache_clear()
    Answerer(manifest)


def test_a_backbone_in_a_pickle_is_not_opened(backbone, tmp_path):
    bomb, folder = tmp_path / "exploded", tmp_path / "pickled"
    shutil.copytree(backbone, folder)
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Bomb(bomb)}, folder / "pytorch_model.bin")
    with pytest.raises(UnsupportedBackboneError, match=r"pickled has no readable model.safetensors"):
        load_backbone(str(folder))
    (folder / "model.safetensors").write_bytes((folder / "pytorch_model.bin").read_bytes())
    with pytest.raises(UnsupportedBackboneError, match=r"pickled has no readable model.safetensors"):
        load_backbone(str(folder))
    assert not bomb.exists()
    assert json.loads((folder / "config.json").read_text())["model_type"] == "bert"
