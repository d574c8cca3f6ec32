"""A causal-lm stream's model from its manifest, and what it says of held-out documents."""

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

from torch import Tensor

from registry.records import Shard
from registry.stream import Stream
from tasks.backbones import open_language
from tasks.learning.adapters import AdapterSpec, check_finite
from tasks.learning.language.retrieval import Moments, fit_gaussian
from tasks.learning.language.scoring import TokenScores
from tasks.learning.language.serving import Entitled, LanguageEntry, LanguageModel
from tasks.learning.language.training import Documents
from tasks.prefix_cache import states_of
from tasks.rows import Row, held_out
from tasks.shards import load_rows

ReadTensors = Callable[[str, str], dict[str, Tensor]]


def load_language_model(manifest: dict[str, Any], read: ReadTensors) -> LanguageModel:
    """Weights and Gaussians of a manifest. An adapter's Gaussian is that of the shards it serves, its own group's."""
    stream = Stream.model_validate(manifest["stream"])
    of_shard = {shard["shard_id"]: _moments(shard["statistics"], read) for shard in manifest["shards"]}
    entries = [
        LanguageEntry(
            adapter["adapter_id"],
            adapter["group"],
            fit_gaussian([_moments(part, read) for part in adapter["statistics"]]),
            _weights(adapter, read),
        )
        for adapter in manifest["adapters"]
    ]
    for look in manifest["waiting"]:
        seen = [of_shard[shard_id] for shard_id in look["serves"] if shard_id in of_shard]
        if seen:
            entries.append(LanguageEntry(look["adapter_id"], look["group"], fit_gaussian(seen), None))
    return LanguageModel(
        cut=manifest["cut"],
        spec=AdapterSpec(**manifest["spec"]),
        groups=frozenset(shard["group"] for shard in manifest["shards"]),
        entries=tuple(entries),
        top_k=stream.completion.top_k,
        far=math.inf if stream.completion.far is None else stream.completion.far,
        new_tokens=stream.completion.new_tokens,
    )


def _weights(adapter: dict[str, Any], read: ReadTensors) -> dict[str, Tensor]:
    weights = read(adapter["weights"]["key"], adapter["weights"]["sha256"])
    check_finite(weights, f"adapter {adapter['adapter_id']}")
    return weights


def _moments(blob: dict[str, Any], read: ReadTensors) -> Moments:
    return Moments.from_tensors(read(blob["key"], blob["sha256"]))


def documents_of(stream: Stream, rows: Sequence[Row], states: Sequence[Tensor]) -> Documents:
    """Token numbers of rows beside their states entering the cut."""
    backbone = open_language(stream)
    return Documents([backbone.document(row.input.decode()) for row in rows], states)


def score_held_out(
    stream: Stream, model: LanguageModel, shards: Sequence[Shard], holding: Collection[str] = ()
) -> dict[int, tuple[list[TokenScores], list[TokenScores]]]:
    """Shard id -> its held-out documents under the adapters they retrieve, and under the frozen backbone alone.

    Asked as a caller of the shard's group who holds these groups as well.
    """
    found = {}
    for group in sorted({shard.group for shard in shards}):
        entitled = Entitled(open_language(stream), model, {group, *holding} & model.groups)
        for shard in (each for each in shards if each.group == group):
            rows = held_out(load_rows(shard))
            documents = documents_of(stream, rows, states_of(stream, rows))
            alone = entitled.score(documents, alone=True)
            found[shard.shard_id] = (entitled.score(documents) if entitled.weights else alone, alone)
    return found
