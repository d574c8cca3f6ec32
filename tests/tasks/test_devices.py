"""One setting says what trains; a device that is not there is an error before anything is trained."""

import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

from infra.errors import SettingsError
from infra.settings import settings
from registry.errors import StateError
from registry.stream import Stream
from tasks.devices import device_name, require_gpus, require_repeatable, training_device
from tasks.learning.adapters import AdapterSpec
from tasks.learning.backbones import load_backbone
from tasks.learning.training import Recipe, train_slice
from tasks.training import means_of
from tests.learning.conftest import WORDS, sentences

STREAM = Stream(name="mail", backbone="b", source="*")
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")


@no_gpu
def test_auto_is_the_cpu_where_torch_sees_no_gpu():
    assert settings().device == "auto"
    assert device_name(training_device()) == means_of(STREAM, 1) == "cpu"
    assert means_of(STREAM, 4) == "cpu × 4"


@no_gpu
def test_a_gpu_that_is_not_there_is_an_error(set_variable):
    set_variable("DEVICE", "cuda:1")
    with pytest.raises(StateError, match=r"DECIDUOUS_DEVICE is 'cuda:1' and torch .* sees 0 GPUs here"):
        training_device()
    with pytest.raises(StateError, match=r"tasks.processes is 2, and this worker sees 0 GPUs"):
        require_gpus(2)


def test_a_device_that_is_none_is_refused(set_variable):
    set_variable("DEVICE", "gpu")
    with pytest.raises(SettingsError, match="DECIDUOUS_DEVICE"):
        settings()


@pytest.mark.gpu
def test_a_gpu_repeats_its_bytes(tmp_path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=len(WORDS), max_position_embeddings=64, **sizes)).save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizerFast(vocab=str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    device = training_device()
    require_repeatable(device)
    bert = load_backbone(str(tmp_path), device=str(device))
    states, recipe = bert.encode(sentences(16), 2), Recipe(epochs=2, minibatch=4)
    one, two = (
        train_slice(bert, states, list("abab" * 4), 2, AdapterSpec("bottleneck", 4, 2), recipe, 1).to_tensors()
        for _ in range(2)
    )
    assert all(torch.equal(one[name], two[name]) for name in one)
