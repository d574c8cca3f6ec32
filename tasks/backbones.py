"""Find and open a stream's backbone: a folder, a Python package's model, or a Hugging Face id."""

from functools import cache
from importlib.util import find_spec
from os.path import expanduser
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from infra import database
from infra.settings import settings
from registry import catalog
from registry.errors import StateError, UnsupportedBackboneError
from registry.sections import TaskType
from registry.stream import Stream
from tasks.learning.adapters import AdapterSpec, AdapterWeights, check_finite, check_weights, default_layers
from tasks.learning.backbones import Backbone, load_backbone
from tasks.learning.language.backbones import LanguageBackbone, load_language_backbone


def open_backbone(stream: Stream, device: str = "cpu") -> Backbone:
    """The frozen encoder of a classification stream, loaded once per process and device. All but training runs on the
    CPU's, so that hidden states, statistics and answers have the same bytes on every worker."""
    backbone = _open(stream.backbone, stream.max_tokens, device)
    asked = "image" if stream.task == TaskType.IMAGE else "text"
    if backbone.modality != asked:
        raise UnsupportedBackboneError(
            f"stream {stream.name!r} is of task {stream.task.value}, and {stream.backbone!r} embeds "
            f"{backbone.modality}s: correct `task` or `backbone` in the stream file"
        )
    return backbone


def open_language(stream: Stream) -> LanguageBackbone:
    """The frozen model of a causal-lm stream, loaded once per process."""
    return _open_language(stream.backbone, stream.max_tokens)


def open_frozen(stream: Stream) -> Backbone | LanguageBackbone:
    """Either of them: its digest, depth and width, the work done so far, and the states that enter a cut."""
    return open_language(stream) if stream.task == TaskType.LANGUAGE else open_backbone(stream)


def adapter_spec(stream: Stream) -> AdapterSpec:
    """Where the stream's adapters sit; two thirds of the depth where the stream names no number of layers."""
    depth, layers = open_frozen(stream).num_blocks, stream.adapter.last_layers
    if layers is not None and layers > depth:
        raise StateError(
            f"stream {stream.name!r} asks for adapter.last_layers {layers}, {stream.backbone!r} has {depth} blocks: "
            f"name 1 to {depth}"
        )
    return AdapterSpec(stream.adapter.method, stream.adapter.rank, layers or default_layers(depth))


def require_positions(stream: Stream) -> None:
    """Raise StateError where texts may be cut at more tokens than the backbone has places for."""
    positions = open_frozen(stream).positions
    if positions is not None and stream.max_tokens > positions:
        raise StateError(
            f"stream {stream.name!r} asks for max_tokens {stream.max_tokens}, {stream.backbone!r} has places for "
            f"{positions}: name at most {positions}"
        )


def cut_of(stream: Stream, backbone: Backbone | LanguageBackbone) -> int:
    """The block whose input the prefix cache keeps: everything before it is frozen for ever."""
    return backbone.num_blocks - adapter_spec(stream).last_layers


def require_backbone(stream: Stream) -> None:
    """Raise StateError unless the backbone is the one that the stream's artifacts were made with: a worker's folder or
    package of that name may hold another model."""
    with database.transaction() as session:
        catalog.require_backbone(session, stream, open_frozen(stream).digest)


def check_adapter(stream: Stream, weights: AdapterWeights, what: str) -> None:
    """Raise BadWeightsError for weights that do not fit the stream's backbone or are not finite."""
    if stream.task == TaskType.LANGUAGE:  # PEFT refuses what does not fit
        return check_finite(weights, what)
    backbone = open_backbone(stream)
    return check_weights(weights, range(cut_of(stream, backbone), backbone.num_blocks), backbone.width, what)


@cache
def _open(source: str, max_tokens: int, device: str) -> Backbone:
    # one fixed thread count: the split of a matrix product over threads changes its last bits
    torch.set_num_threads(settings().threads)
    backbone = load_backbone(str(locate(source)), max_tokens=max_tokens, device=device)
    if device != "cpu":
        backbone.work = _open(source, max_tokens, "cpu").work  # one count of what was computed
    return backbone


@cache
def _open_language(source: str, max_tokens: int) -> LanguageBackbone:
    torch.set_num_threads(settings().threads)
    return load_language_backbone(str(locate(source)), max_tokens=max_tokens)


def locate(source: str) -> Path:
    """The folder that holds config.json. Raises UnsupportedBackboneError that says what was looked for."""
    if source.startswith("package:"):
        return _in_package(source.removeprefix("package:"))
    folder = Path(expanduser(source))
    if (folder / "config.json").is_file():
        return folder
    if folder.exists():
        raise UnsupportedBackboneError(f"backbone folder {source!r} has no config.json; give a Hugging Face folder")
    if folder.is_absolute():
        raise UnsupportedBackboneError(
            f"backbone folder {source!r} is not there: put it, or a link to it, where the stream's file says"
        )
    try:
        return Path(snapshot_download(source, allow_patterns=["*.json", "*.txt", "*.safetensors", "*.model"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UnsupportedBackboneError(
            f"backbone {source!r} is no folder, and no Hugging Face model could be fetched under that id ({reason}); "
            "give a folder, package:NAME, or an id that can be reached"
        ) from None


def _in_package(name: str) -> Path:
    try:
        spec = find_spec(name)
    except (ImportError, ValueError):  # of a module inside of a package that is not there; of a name that none has
        spec = None
    roots = list(spec.submodule_search_locations or []) if spec is not None else []
    configs = sorted((p for root in roots for p in Path(root).rglob("config.json")), key=lambda p: len(p.parts))
    if not configs:
        raise UnsupportedBackboneError(f"backbone package {name!r} is not installed or holds no config.json")
    return configs[0].parent
