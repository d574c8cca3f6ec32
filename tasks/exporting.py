"""A copy of an adapter for other servers: a PEFT folder, as LoRAX or vLLM load it."""

from pathlib import Path

from infra import database
from registry import adapters as adapter_rows
from registry import catalog, lineage
from registry.errors import StateError, SuppressedRecordError
from registry.records import AdapterState
from registry.sections import TaskType
from tasks import blobs
from tasks.backbones import adapter_spec, open_language
from tasks.learning.language.lora import save_peft_folder
from tasks.release import tainted_shards


def export_adapter(adapter_id: str, folder: Path) -> list[Path]:
    """Write the adapter's PEFT folder; returns its files. The copy is out of reach of a later deletion ticket.

    Raises StateError for what is no LoRA adapter or was erased, and for a folder that holds something;
    SuppressedRecordError while a ticket that names one of its records is open.
    """
    with database.transaction() as session:
        adapter = adapter_rows.get_adapter(session, adapter_id)
        stream = catalog.get_stream(session, adapter.stream)
        reached = set(lineage.closure(session, tainted_shards(session, stream.name)))
    if stream.task != TaskType.LANGUAGE:
        raise StateError(
            f"{adapter_id!r} is of {stream.task} stream {stream.name!r}; adapters of causal-lm are exported"
        )
    if adapter.state == AdapterState.ERASED:
        raise StateError(f"{adapter_id!r} was erased: {adapter.reason}; choose another")
    if adapter_id in reached:
        raise SuppressedRecordError(
            f"{adapter_id!r} rests on records that an open ticket names; finish the ticket first"
        )
    if folder.exists() and any(folder.iterdir()):
        raise StateError(f"{folder} is not empty; name another folder")
    weights = blobs.load_tensors(adapter.node, "weights")
    save_peft_folder(folder, open_language(stream), adapter_spec(stream), weights)
    return sorted(folder.iterdir())
