"""Tiny encoders with random weights, saved and loaded like any Hugging Face folder."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizerFast,
    DeiTConfig,
    DeiTModel,
    Dinov2Config,
    Dinov2Model,
    DistilBertConfig,
    DistilBertModel,
    RobertaConfig,
    RobertaModel,
    ViTConfig,
    ViTModel,
)

from tasks.learning.adapters import AdapterWeights
from tasks.learning.backbones import Backbone, load_backbone

SIZES = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}
TEXT = ("bert", "roberta", "distilbert")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    """A test draws the same numbers whatever ran before it: with four units, one draw in twenty has none alive."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("backbones")
    models = {
        "bert": BertModel(BertConfig(vocab_size=len(WORDS), intermediate_size=64, max_position_embeddings=64, **SIZES)),
        "vit": ViTModel(ViTConfig(image_size=16, patch_size=8, intermediate_size=64, **SIZES), add_pooling_layer=False),
        "dinov2": Dinov2Model(Dinov2Config(image_size=28, patch_size=14, mlp_ratio=2, **SIZES)),
        "distilbert": DistilBertModel(
            DistilBertConfig(vocab_size=len(WORDS), dim=32, n_layers=4, n_heads=2, hidden_dim=64)
        ),
        "roberta": RobertaModel(
            RobertaConfig(
                vocab_size=len(WORDS), intermediate_size=64, max_position_embeddings=65, pad_token_id=0, **SIZES
            )
        ),
        "deit": DeiTModel(
            DeiTConfig(image_size=16, patch_size=8, intermediate_size=64, **SIZES), add_pooling_layer=False
        ),
    }
    for name, model in models.items():
        model.save_pretrained(root / name)
    (root / "vocab.txt").write_text("\n".join(WORDS))
    for name in TEXT:
        BertTokenizerFast(vocab=str(root / "vocab.txt")).save_pretrained(root / name)
    return {name: root / name for name in models}


@pytest.fixture(scope="session")
def vit(folders: dict[str, Path]) -> Backbone:
    return load_backbone(str(folders["vit"]))


@pytest.fixture(scope="session")
def bert(folders: dict[str, Path]) -> Backbone:
    return load_backbone(str(folders["bert"]))


def pictures(count: int, size: int = 16, seed: int = 0) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, 256, (count, 3, size, size), dtype=np.uint8))


def sentences(count: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(list("abcdefgh"), rng.integers(1, 30))) for _ in range(count)]


def apply_adapter(weights: AdapterWeights, block: int, hidden_BTD: torch.Tensor) -> torch.Tensor:
    """The definition of an adapter: f(h) = W_up ReLU(W_down h + b_down) + b_up, per token."""
    down, down_bias, up, up_bias = (
        weights[f"blocks.{block}.{name}"] for name in ("down.weight", "down.bias", "up.weight", "up.bias")
    )
    return (hidden_BTD @ down.mT + down_bias).relu() @ up.mT + up_bias


def shard(backbone: Backbone, number: int, classes: str, cut: int) -> tuple[list[torch.Tensor], list[str]]:
    """Sixteen pictures of noise, those of the first class four times as dark."""
    labels = [classes[i % 2] for i in range(16)]
    images = [
        image // (1 + 3 * (label == classes[0])) for image, label in zip(pictures(16, seed=number), labels, strict=True)
    ]
    return backbone.encode(images, cut), labels
