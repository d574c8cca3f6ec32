"""What a person may do with a batch that is held: have it judged again, or let it go so that it can come anew."""

from infra import database
from registry import catalog, holding
from registry.records import Batch
from tasks.exclusion import alone, naming
from tasks.garbage import collect_garbage
from tasks.narration import say
from tasks.prefix_cache import purge
from tasks.retries import step
from tasks.shards import load_rows


@step("reopen-{batch_id}")
def reopen_batch(batch_id: str) -> Batch:
    """The next run decides on the batch again, as the stream file then is. Raises StateError where it is not held."""
    with database.transaction() as session:
        return holding.reopen_batch(session, batch_id)


@step("discard-{batch_id}")
def discard_batch(batch_id: str) -> Batch:
    """Forget the rows of a held batch, so that its records may come again, with labels for instance.

    No artifact was made of them; their copies leave the cache and the store. The same source object is not read again.
    Raises StateError where the batch is not held, HeldError while another process works on the stream.
    """
    with database.transaction() as session:
        batch = holding.require_held(session, batch_id)
        stream = catalog.get_stream(session, batch.stream)
    with alone(batch.stream, wait_seconds=0), naming(batch.stream):
        purge(stream.name, {row.record for shard in batch.shards for row in load_rows(shard)})
        with database.transaction() as session:
            holding.discard_batch(session, batch_id)
        removed = collect_garbage(batch.stream)
    say(f"{batch.stream}: {batch.name} is discarded: {batch.rows_left} rows, {len(removed)} object versions")
    return batch
