"""Train an adapter on its shards, slice by slice, with a checkpoint after each."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from itertools import groupby

from infra import database
from infra.settings import settings
from registry import ownership
from registry.errors import BadWeightsError
from registry.records import Shard
from registry.sections import Composition, TaskType
from registry.stream import Stream
from tasks import blobs
from tasks.backbones import adapter_spec, cut_of, locate, open_backbone, open_language
from tasks.devices import CPU, device_name, require_gpus, require_repeatable, training_device
from tasks.identity import seed_of
from tasks.language import documents_of
from tasks.learning.backbones import load_backbone
from tasks.learning.data_parallel import Slice, train_together
from tasks.learning.language.training import PACKED_ROWS, train_documents
from tasks.learning.tensors import NonFiniteError
from tasks.learning.training import Recipe, TrainState, train_slice
from tasks.narration import say
from tasks.prefix_cache import encode, states_of
from tasks.progress import Progress
from tasks.release import check_epoch, storing
from tasks.rows import Row, trainable
from tasks.shards import load_rows
from tasks.stopwatch import timing


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of training: every row up to and including a slice."""

    rows: tuple[Row, ...]
    seed: int
    digest: str
    """Of the surviving record ids, the recipe and what it ran on: a deletion misses it from the first touched slice on,
    and bytes of a GPU are never trained on by a CPU."""


def recipe_of(stream: Stream) -> Recipe:
    """Epochs are spread so that all slices together cost what one unsliced run would (SISA, arXiv 1912.03817)."""
    epochs = max(1, round(2 * stream.adapter.epochs / (stream.adapter.slices + 1)))
    recipe = Recipe(epochs, stream.adapter.learning_rate, optimizer=stream.adapter.optimizer)
    recipe = replace(recipe, nested=stream.adapter.ranks == "nested")
    return replace(recipe, minibatch=PACKED_ROWS) if stream.task == TaskType.LANGUAGE else recipe


def means_of(stream: Stream, processes: int) -> str:
    """What of the machine shapes the bytes: 'cpu', 'cuda NVIDIA H100', or either with '× 4' for four processes.

    Documents and mixtures are trained by one process on the CPU."""
    if stream.task == TaskType.LANGUAGE or stream.composition == Composition.MIX:
        return CPU
    name = device_name(training_device())
    return name if processes == 1 else f"{name} × {processes}"


def stages_of(stream: Stream, shards: Sequence[Shard], processes: int = 1) -> Iterator[Stage]:
    """Shards in training order, slices within a shard in ascending order; seeds come from names, not from rows."""
    so_far: list[Row] = []
    means = means_of(stream, processes)
    recipe = [stream.recipe_digest] if means == CPU else [stream.recipe_digest, means]
    for shard in shards:
        rows = sorted(trainable(load_rows(shard)), key=lambda row: row.slice)
        for slice_, members in groupby(rows, key=lambda row: row.slice):
            so_far += list(members)
            name = f"{shard.batch_name}\x1f{shard.group}\x1f{slice_}"
            ids = sha256("\n".join([*recipe, name, *(row.record for row in so_far)]).encode()).hexdigest()
            yield Stage(tuple(so_far), seed_of("train", stream.name, name), ids)


def slices_in(stream: Stream, shards: Sequence[Shard]) -> int:
    """At most so many stages: a slice without a row has none."""
    return len(shards) * stream.adapter.slices


def train(
    stream: Stream,
    owner: str,
    shards: Sequence[Shard],
    *,
    epoch: int | None = None,
    from_scratch: bool = False,
    processes: int = 1,
) -> TrainState:
    """Train on the shards' rows; the same rows, names and recipe give the same bytes, in one process on one device.

    Stages whose checkpoint `owner` already holds are not run again, so a killed run resumes and a deletion retrains
    from the last clean slice. `from_scratch` uses neither checkpoints nor cached states: the reference of a comparison.
    Raises StaleEpochError at the next checkpoint where a ticket took effect since `epoch`.
    """
    state: TrainState | None = None
    bar = Progress(f"training-{owner.replace(':', '-')}", f"training {owner}", slices_in(stream, shards))
    say(f"  {owner} is trained on {means_of(stream, processes)} (DECIDUOUS_DEVICE={settings().device})")
    for stage in bar.over(stages_of(stream, shards, processes)):
        kind = f"checkpoint:{stage.digest}"
        known = None if from_scratch else blobs.find(owner, kind)
        if known is not None:
            state = TrainState.from_tensors(blobs.read_tensors(known.key, known.sha256))
            continue
        try:
            state = _train_stage(stream, stage, state, from_scratch, processes, bar.tell)
        except NonFiniteError as error:
            raise BadWeightsError(
                f"{owner}: {error}; nothing was stored: start the stream under a new name with a lower "
                "adapter.learning_rate, or look for odd rows in the batch"
            ) from None
        if not from_scratch:
            save_checkpoint(stream, shards[0].group, owner, kind, state.to_tensors(), epoch)
    assert state is not None, f"{owner} has no row to train on"
    return state


def save_checkpoint(
    stream: Stream, group: str, owner: str, kind: str, tensors: blobs.Tensors, epoch: int | None
) -> None:
    """Write a checkpoint and name it. Raises StaleEpochError where a ticket took effect since `epoch`."""
    what = f"training {owner}"
    with storing(stream.name, epoch, what):
        stored = blobs.store_tensors(blobs.prefix(stream.name, group), owner, kind, tensors)
        with database.transaction() as session:
            check_epoch(session, stream.name, epoch, what)
            ownership.put_object(session, stored)


@timing("training")
def _train_stage(
    stream: Stream,
    stage: Stage,
    start: TrainState | None,
    from_scratch: bool,
    processes: int,
    tell: Callable[[float], None],
) -> TrainState:
    rows, recipe = list(stage.rows), recipe_of(stream)
    states = encode(stream, rows) if from_scratch else states_of(stream, rows)

    def on_epoch(epoch: int, loss: float) -> None:
        say(f"  training, {len(rows)} rows: epoch {epoch + 1}/{recipe.epochs}, loss {loss:.3f}", progress=True)
        tell((epoch + 1) / recipe.epochs)

    if stream.task == TaskType.LANGUAGE:
        model = open_language(stream)
        where = (cut_of(stream, model), adapter_spec(stream))
        documents = documents_of(stream, rows, states)
        return train_documents(model, documents, *where, recipe, stage.seed, start, on_epoch)
    labels, cut, device = [row.label or "" for row in rows], cut_of(stream, open_backbone(stream)), training_device()
    work = Slice(states, labels, cut, adapter_spec(stream), recipe, stage.seed, start)
    if processes > 1:
        cuda = device.type == "cuda"
        if cuda:
            require_gpus(processes)
        load = partial(load_backbone, str(locate(stream.backbone)), max_tokens=stream.max_tokens)
        return train_together(load, work, processes, cuda, on_epoch)
    require_repeatable(device)
    return train_slice(open_backbone(stream, str(device)), *work, on_epoch=on_epoch)
