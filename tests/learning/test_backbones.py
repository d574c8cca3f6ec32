"""Backbones agree with the model they drive, bit by bit and in any company."""

import json
from io import BytesIO
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torch.nn.functional import layer_norm
from transformers import ConvNextConfig, ConvNextModel, ViTConfig, ViTModel, XLMRobertaConfig, XLMRobertaModel

from registry.errors import UnsupportedBackboneError
from tasks.learning.backbones import Backbone, load_backbone
from tasks.learning.features import features, late_view, signatures
from tasks.learning.images import open_image, to_pixels
from tests.learning.conftest import SIZES, TEXT, pictures, sentences

SUPPORTED = ("bert", "roberta", "distilbert", "vit", "deit", "dinov2")


def inputs_of(name: str) -> list[Any]:
    return sentences(20) if name in TEXT else pictures(20, 28 if name == "dinov2" else 16)


@pytest.mark.parametrize("name", SUPPORTED)
def test_every_block_run_alone_gives_the_models_own_output(folders: dict[str, Path], name: str) -> None:
    backbone = load_backbone(str(folders[name]))
    record = inputs_of(name)[0]
    hidden_TD = backbone.encode([record], backbone.num_blocks)[0]
    with torch.inference_mode():
        if backbone.preprocessing is None:
            theirs = backbone.model(**backbone.tokenizer([record], return_tensors="pt")).last_hidden_state[0]
        else:
            theirs = backbone.model(to_pixels(record, backbone.preprocessing)[None]).last_hidden_state[0]
            [norm] = [module for module in backbone.model.children() if isinstance(module, nn.LayerNorm)]
            hidden_TD = norm(hidden_TD)
    torch.testing.assert_close(hidden_TD, theirs)


@pytest.mark.parametrize("name", SUPPORTED)
def test_a_records_bytes_do_not_depend_on_its_company(folders: dict[str, Path], name: str) -> None:
    backbone = load_backbone(str(folders[name]))
    records = inputs_of(name)
    states = backbone.encode(records, 2)
    features_NF, signatures_LND = features(backbone, states, 2), signatures(backbone, states, 2)

    @settings(max_examples=10, deadline=None)
    @given(st.permutations(range(20)), st.integers(1, 20))
    def check(order: list[int], size: int) -> None:
        chosen = order[:size]
        again = backbone.encode([records[i] for i in chosen], 2)
        assert all(torch.equal(a, states[i]) for a, i in zip(again, chosen, strict=True))
        assert torch.equal(features(backbone, again, 2), features_NF[chosen])
        assert torch.equal(signatures(backbone, again, 2), signatures_LND[:, chosen])

    check()


def test_encoding_in_two_parts_is_encoding_at_once(vit: Backbone) -> None:
    records = pictures(5)
    states = vit.encode(records, 1)
    hidden_BTD, lengths_B = vit.pad(states, 5, vit.rows)
    with torch.inference_mode():
        onward_BTD = vit.run_blocks(hidden_BTD, lengths_B, 1, 3)
    assert all(torch.equal(a, b) for a, b in zip(vit.encode(records, 3), onward_BTD, strict=False))


@pytest.mark.parametrize(("name", "cut"), [("bert", 0), ("vit", 0), ("vit", 3)])
def test_features_are_late_class_tokens_beside_early_token_means(folders: dict[str, Path], name: str, cut: int) -> None:
    backbone, record = load_backbone(str(folders[name])), inputs_of(name)[0]
    states = [backbone.encode([record], block)[0] for block in range(cut, backbone.num_blocks + 1)]
    late = [state_TD.mean(0) if name == "bert" else state_TD[0] for state_TD in states[-4:]]
    early = [state_TD.mean(0) if name == "bert" else state_TD[1:].mean(0) for state_TD in states[:4]]
    expected_SD = layer_norm(torch.stack([*late, *early]), (backbone.width,))
    found_NF = features(backbone, backbone.encode([record], cut), cut)
    torch.testing.assert_close(found_NF[0], expected_SD.flatten())
    assert torch.equal(late_view(found_NF), found_NF[:, : len(late) * backbone.width])


def test_work_counts_rows_times_blocks(folders: dict[str, Path]) -> None:
    backbone = load_backbone(str(folders["vit"]))
    backbone.encode(pictures(20), 3)
    assert (backbone.work.forwards, backbone.work.backwards) == (60, 0)


def test_the_digest_names_weights_and_preprocessing(folders: dict[str, Path]) -> None:
    folder = str(folders["bert"])
    digest = load_backbone(folder).digest
    assert load_backbone(folder).digest == digest
    assert load_backbone(folder, max_tokens=32).digest != digest
    changed = load_backbone(folder)
    next(changed.model.parameters()).data[0] += 1
    assert changed._digest("") != load_backbone(folder)._digest("")


def test_a_long_text_is_cut_and_an_odd_image_is_fitted(bert: Backbone, vit: Backbone) -> None:
    assert len(bert.encode(["a " * 200], 1)[0]) == 64
    assert vit.encode([pictures(1, 40)[0], pictures(1, 16)[0][0]], 1)[0].shape == (5, 32)


@pytest.mark.parametrize("name", TEXT)
def test_the_longest_text_fits_and_a_longer_one_is_refused_by_what_to_change(
    folders: dict[str, Path], name: str
) -> None:
    longest = load_backbone(str(folders[name])).positions
    assert longest == {"bert": 64, "roberta": 64, "distilbert": 512}[name]
    assert len(load_backbone(str(folders[name]), max_tokens=longest).encode(["a " * 600], 1)[0]) == longest
    loose = load_backbone(str(folders[name]), max_tokens=600)
    assert len(loose.encode(["a b"], 1)[0]) == 4
    with pytest.raises(UnsupportedBackboneError, match=f"has places for {longest}, .* with max_tokens {longest}"):
        loose.encode(["a " * 600], 1)


def test_an_architecture_without_blocks_is_named(tmp_path: Path) -> None:
    ConvNextModel(ConvNextConfig(depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 8, 8])).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedBackboneError, match="ConvNextModel"):
        load_backbone(str(tmp_path))


@pytest.mark.parametrize(("layers", "width"), [(5, 64), (4, 48)])
def test_a_folder_without_all_of_its_weights_is_refused(
    folders: dict[str, Path], tmp_path: Path, layers: int, width: int
) -> None:
    """They would be made up, other ones in every process."""
    copytree(folders["vit"], tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps(config | {"num_hidden_layers": layers, "intermediate_size": width})
    )
    with pytest.raises(UnsupportedBackboneError, match=r"lacks \d+ weights .* or has them in another shape"):
        load_backbone(str(tmp_path))


def test_a_pooler_that_was_never_trained_does_not_name_the_backbone(folders: dict[str, Path], tmp_path: Path) -> None:
    """A masked language model is stored without it, and it would be another one in every process."""
    copytree(folders["roberta"], tmp_path, dirs_exist_ok=True)
    config = XLMRobertaConfig.from_pretrained(folders["roberta"])
    XLMRobertaModel(config, add_pooling_layer=False).save_pretrained(tmp_path)
    assert load_backbone(str(tmp_path)).digest == load_backbone(str(tmp_path)).digest


def test_a_model_of_one_channel_is_refused(tmp_path: Path) -> None:
    ViTModel(ViTConfig(num_channels=1, image_size=16, patch_size=8, **SIZES), add_pooling_layer=False).save_pretrained(
        tmp_path
    )
    with pytest.raises(UnsupportedBackboneError, match="images of 1 channels"):
        load_backbone(str(tmp_path))


@pytest.mark.parametrize("content", ['{"image_mean": 0.5}', "[]", "{"])
def test_a_preprocessing_that_cannot_be_read_is_named(folders: dict[str, Path], tmp_path: Path, content: str) -> None:
    copytree(folders["vit"], tmp_path, dirs_exist_ok=True)
    (tmp_path / "preprocessor_config.json").write_text(content)
    with pytest.raises(UnsupportedBackboneError, match=r"preprocessor_config.json cannot be read"):
        load_backbone(str(tmp_path))


def test_the_wrong_kind_of_record_is_refused(bert: Backbone, vit: Backbone) -> None:
    with pytest.raises(ValueError, match="image backbone"):
        vit.encode(["a text"], 1)
    with pytest.raises(ValueError, match="text backbone"):
        bert.encode(pictures(1), 1)


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_an_image_of_16_bits_looks_as_one_of_8(form: str) -> None:
    grey_HW = np.arange(256, dtype=np.uint16).reshape(16, 16)
    sink = BytesIO()
    Image.fromarray(grey_HW * 257).save(sink, form)
    assert (np.asarray(open_image(sink.getvalue())) == grey_HW[:, :, None]).all()


def test_of_a_thin_strip_the_middle_is_seen_without_scaling_the_rest(vit: Backbone) -> None:
    """Scaled as a whole to the height of the model, these few hundred bytes would be gigabytes."""
    strip = Image.new("L", (8_000_000, 1))
    strip.paste(255, (3_999_000, 0, 4_001_000, 1))
    sink = BytesIO()
    strip.save(sink, "PNG")
    strip = open_image(sink.getvalue())
    white = Image.new("RGB", (strip.height, strip.height), "white")
    assert to_pixels(strip, vit.preprocessing).equal(to_pixels(white, vit.preprocessing))
