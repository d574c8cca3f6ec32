"""Make a version's manifest, and the model that it describes."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor

from infra import database
from registry import adapters as adapter_rows
from registry import catalog, contents, ownership
from registry.records import Adapter, AdapterState, Shard, StoredObject
from registry.sections import TaskType
from registry.stream import Stream
from tasks import blob_cache
from tasks.backbones import adapter_spec, check_adapter, cut_of, open_frozen
from tasks.language import load_language_model
from tasks.learning.adapters import AdapterSpec
from tasks.learning.banks import AdapterBank
from tasks.learning.composition import AdapterEntry, KnownLook, ServingModel
from tasks.learning.compression import decompress
from tasks.learning.descriptors import Descriptor
from tasks.learning.heads import ClassStatistics
from tasks.learning.language.serving import LanguageModel
from tasks.manifests import Manifest

ReadTensors = Callable[[str, str], dict[str, Tensor]]

FORMAT = 1


def current_manifest(
    stream: Stream,
    *,
    extra_shards: Sequence[Shard] = (),
    adapters: Sequence[Adapter] | None = None,
    unnamed: Sequence[StoredObject] = (),
    epoch: int | None = None,
) -> Manifest:
    """What would serve now: every shard that changed the model, and the serving adapters or those given.

    Candidates beside them only wait: their looks are known. A merged adapter stands for its parents. `unnamed` are
    blobs of adapters that the catalog does not know. `epoch` is the deletion epoch at which the work began; the release
    gate compares it with the stream's.
    """
    with database.transaction() as session:
        shards = contents.done_shards(session, stream.name)
        shards += [shard for shard in extra_shards if shard not in shards]
        if adapters is None:
            adapters = adapter_rows.adapters(session, stream.name, [AdapterState.SERVING])
        named = {name for adapter in adapters for name in (adapter.adapter_id, *adapter.parent_ids)}
        candidates = adapter_rows.adapters(session, stream.name, [AdapterState.CANDIDATE])
        waiting = [candidate for candidate in candidates if candidate.adapter_id not in named]
        nodes = [shard.node for shard in shards] + [adapter.node for adapter in (*adapters, *waiting)]
        objects = [*ownership.objects_of(session, nodes), *unnamed]
        epoch = catalog.stream_epoch(session, stream.name) if epoch is None else epoch
    return build_manifest(stream, epoch, shards, adapters, waiting, objects)


def build_manifest(
    stream: Stream,
    epoch: int,
    shards: Sequence[Shard],
    adapters: Sequence[Adapter],
    waiting: Sequence[Adapter],
    objects: Sequence[StoredObject],
) -> Manifest:
    backbone = open_frozen(stream)
    blob = {(o.owner, o.kind): {"key": o.key, "sha256": o.sha256} for o in objects}
    return {
        "format": FORMAT,
        "stream": stream.model_dump(mode="json"),
        "backbone_digest": backbone.digest,
        "epoch": epoch,
        "cut": cut_of(stream, backbone),
        "spec": asdict(adapter_spec(stream)),
        "shards": [
            {"shard_id": s.shard_id, "batch_id": s.batch_id, "group": s.group, "statistics": blob[s.node, "statistics"]}
            for s in shards
            if (s.node, "statistics") in blob
        ],
        "adapters": [
            {
                "adapter_id": a.adapter_id,
                "group": a.group,
                "weights": blob[a.node, "weights"],
                "descriptor": blob[a.node, "descriptor"],
                "statistics": [
                    {"shard_id": s, **blob[a.node, f"statistics:{s}"]}
                    for s in a.serves
                    if (a.node, f"statistics:{s}") in blob
                ],
            }
            for a in adapters
        ],
        "waiting": [
            {
                "adapter_id": a.adapter_id,
                "group": a.group,
                "descriptor": blob[a.node, "descriptor"],
                "serves": list(a.serves),
            }
            for a in waiting
            if (a.node, "descriptor") in blob
        ],
    }


def load_model(manifest: Manifest, read: ReadTensors = blob_cache.read_tensors) -> ServingModel | LanguageModel:
    """The model of a manifest, its adapters written into a bank slot by slot; every blob's bytes are checked."""
    if manifest["stream"]["task"] == TaskType.LANGUAGE:
        return load_language_model(manifest, read)
    of_shard = {shard["shard_id"]: _statistics(shard["statistics"], read) for shard in manifest["shards"]}
    frozen: dict[str, list[ClassStatistics]] = {}
    for shard in manifest["shards"]:
        if of_shard[shard["shard_id"]].labels:  # rows without a label make no head
            frozen.setdefault(shard["group"], []).append(of_shard[shard["shard_id"]])
    stream, bank = Stream.model_validate(manifest["stream"]), AdapterBank()
    for adapter in manifest["adapters"]:
        weights = decompress(read(adapter["weights"]["key"], adapter["weights"]["sha256"]))
        check_adapter(stream, weights, f"adapter {adapter['adapter_id']} of {stream.name!r}")
        bank.write(adapter["adapter_id"], weights)
    model = ServingModel(
        cut=manifest["cut"],
        spec=AdapterSpec(**manifest["spec"]),
        frozen={group: tuple(parts) for group, parts in frozen.items()},
        adapters=tuple(_entry(adapter, bank, of_shard, read) for adapter in manifest["adapters"]),
        waiting=tuple(
            KnownLook(look["adapter_id"], look["group"], _descriptor(look["descriptor"], read))
            for look in manifest["waiting"]
        ),
        loaded=bank,
    )
    blob_cache.trim()
    return model


def _entry(
    adapter: dict[str, Any], bank: AdapterBank, of_shard: dict[int, ClassStatistics], read: ReadTensors
) -> AdapterEntry:
    return AdapterEntry(
        adapter_id=adapter["adapter_id"],
        group=adapter["group"],
        weights=bank.read(adapter["adapter_id"]),
        descriptor=_descriptor(adapter["descriptor"], read),
        statistics=tuple(_statistics(part, read) for part in adapter["statistics"]),
        frozen=tuple(of_shard[part["shard_id"]] for part in adapter["statistics"] if part["shard_id"] in of_shard),
    )


def _statistics(blob: dict[str, str], read: ReadTensors) -> ClassStatistics:
    return ClassStatistics.from_tensors(read(blob["key"], blob["sha256"]))


def _descriptor(blob: dict[str, str], read: ReadTensors) -> Descriptor:
    return Descriptor.from_tensors(read(blob["key"], blob["sha256"]))
