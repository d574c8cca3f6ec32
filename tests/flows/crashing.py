"""Runs in a child process: register and promote a batch, and die at the n-th effect on the world."""

import os
import signal

import boto3
from sqlalchemy import Engine, event

from infra import database, tracking
from registry import catalog
from tasks import opening
from tasks.batches import finish_batch
from tasks.decisions import to_decision
from tasks.promotion import promote_version
from tasks.registration import register_batch

WRITES = ("PutObject", "CopyObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload", "DeleteObject")


def finish(stream, batch):
    """What flows.learn does with a batch once its adapters are judged; Prefect's bookkeeping aside."""
    with database.transaction() as session:
        decisions = [to_decision(catalog.find_decision(session, shard.shard_id)) for shard in batch.shards]
    version = register_batch.fn(stream, batch, decisions)
    promote_version.fn(stream, version)
    finish_batch.fn(batch)


def count_effects(strike):
    """Call `strike` before every commit of every database and every write to S3, whatever library makes it."""
    event.listen(Engine, "commit", lambda _connection: strike("commit"))
    boto3.setup_default_session()
    for operation in WRITES:
        boto3.DEFAULT_SESSION.events.register(f"before-call.s3.{operation}", lambda **_: strike("write"))


def run(environment, stream, batch, last, answer):
    """Register; die in the place of effect number `last`, or tell `answer` how many effects there were."""
    os.environ.update(environment)
    seen = []

    def strike(what):
        seen.append(what)
        if len(seen) == last:
            os.kill(os.getpid(), signal.SIGKILL)

    opening.open_home()
    tracking.prepare_tracking()
    count_effects(strike)
    finish(stream, batch)
    answer.send(seen)
