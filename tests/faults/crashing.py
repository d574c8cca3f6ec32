"""Jobs in processes that are forked from one warm process, and killed before the n-th thing that they do to the world.

What is done to the world is seen where it happens: a commit that wrote, in any database; a write to S3, by whatever
library; a file of the home that is replaced, linked or removed. So a new step of a flow joins by itself.
"""

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

WRITES = (
    *("PutObject", "CopyObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"),
    *("AbortMultipartUpload", "DeleteObject", "DeleteObjects"),
)
FILES = {"os.rename": "replace", "os.link": "link", "os.remove": "remove"}
CHANGING = ("insert", "update", "delete", "replace", "create", "drop", "alter")
OTHERS = ("prefect", "locks", "matplotlib")
"""Folders of the home that are not ours to keep whole."""


class Effects:
    """What this process did so far, as 'step: what, where'; it dies in the place of effect number `last`."""

    def __init__(self, last: int) -> None:
        self.last, self.seen = last, list[str]()
        self.lock, self.step = threading.Lock(), "begin"

    def strike(self, what: str) -> None:
        with self.lock:
            label = f"{self.step}: {what}"
            if what.startswith("cache ") and self.seen and self.seen[-1] == label:
                return  # a file for every row: dying between two of them is dying before the second
            self.seen.append(label)
            if len(self.seen) == self.last:
                os.kill(os.getpid(), signal.SIGKILL)


class Warm:
    """A process that has imported everything and forks for every job."""

    def __init__(self, backbone: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, backbone), daemon=True)
        self.process.start()
        theirs.close()

    def call(self, work: Callable[..., Any], *args: Any, **environment: str) -> Any:
        """What `work` answers in a process of its own; AssertionError with its traceback where it raised."""
        code, answer = self._ask(work, args, environment, None)
        assert code == 0, answer
        return answer

    def watch(self, work: Callable[..., Any], *args: Any, last: int = 0, **environment: str) -> list[str] | None:
        """Every effect of `work`, or None where it was killed before number `last`."""
        code, answer = self._ask(work, args, environment, last)
        assert code in (0, -signal.SIGKILL), answer
        return answer if code == 0 else None

    def close(self) -> None:
        self.pipe.send(None)
        self.process.join()

    def _ask(self, *job: Any) -> tuple[int, Any]:
        self.pipe.send(job)
        code, answer = self.pipe.recv()
        return code, answer


def serve(pipe: Connection, backbone: str) -> None:
    import_everything(backbone)
    while (job := pipe.recv()) is not None:
        pipe.send(fork(*job))


def import_everything(backbone: str) -> None:
    # ruff: noqa: PLC0415  in the warm process alone
    import matplotlib.figure  # noqa: F401
    import mlflow.pyfunc
    import mlflow.store.artifact.s3_artifact_repo
    import mlflow.store.model_registry.sqlalchemy_store
    import mlflow.store.tracking.sqlalchemy_store
    import mlflow.utils.requirements_utils
    import prefect.events.clients  # noqa: F401
    import torch

    import flows.consolidate
    import flows.forget
    import flows.learn  # noqa: F401
    from tasks.backbones import open_backbone
    from tests.faults.scenarios import stream_of

    os.environ["DECIDUOUS_THREADS"] = "1"  # a pool of threads does not survive a fork
    torch.set_num_threads(1)
    mlflow.utils.requirements_utils._init_packages_to_modules_map()  # takes a second
    open_backbone(stream_of(backbone, Path(backbone)))


def fork(work: Callable[..., Any], args: tuple[Any, ...], environment: dict[str, str], last: int | None) -> Any:
    """(exit code, answer) of a child that runs the work; with `last` its answer are its effects."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        code, known = 1, set(sys.modules)
        try:
            answer = _in_child(work, args, environment, last)
            code = 0
        except BaseException:
            answer = traceback.format_exc()
        with Connection(writing, readable=False) as sink:
            sink.send((answer, [name for name in sys.modules if name not in known]))
        sys.stdout.flush()
        os._exit(code)
    os.close(writing)
    with Connection(reading, writable=False) as source:
        try:
            answer, imported = source.recv()
        except EOFError:
            answer, imported = None, []
    for name in imported:  # the next child finds them there
        with suppress(ImportError):
            import_module(name)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), answer


def _in_child(work: Callable[..., Any], args: tuple[Any, ...], environment: dict[str, str], last: int | None) -> Any:
    from infra.orchestration import without_heartbeat
    from infra.settings import settings

    os.environ.update(environment)
    settings.cache_clear()
    effects = Effects(last) if last is not None else None
    if effects is not None:
        watch_effects(effects, settings().home)
    with without_heartbeat():
        answer = work(*args)
    return answer if effects is None else effects.seen


def watch_effects(effects: Effects, home: Path) -> None:
    """Tell every effect of this process from now on; there is no way back."""
    import boto3
    from prefect.context import TaskRunContext
    from sqlalchemy import Engine, event

    def tell(what: str) -> None:
        context = TaskRunContext.get()
        effects.step = context.task.fn.__name__ if context else effects.step
        effects.strike(what)

    @event.listens_for(Engine, "before_cursor_execute")
    def note(connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.lstrip().lower().startswith(CHANGING):
            connection.info["changed"] = True

    @event.listens_for(Engine, "commit")
    def commit(connection: Any) -> None:
        if connection.info.pop("changed", False):
            tell(f"commit {Path(connection.engine.url.database or '').stem}")

    @event.listens_for(Engine, "rollback")
    def rollback(connection: Any) -> None:
        connection.info.pop("changed", False)

    boto3.setup_default_session()
    for operation in WRITES:
        boto3.DEFAULT_SESSION.events.register(
            f"before-call.s3.{operation}", lambda model, **_: tell(f"S3 {model.name}")
        )

    def audit(name: str, args: tuple[Any, ...]) -> None:
        if name in FILES and isinstance(args[0], str | os.PathLike):
            path = Path(args[1] if name != "os.remove" else args[0])
            if path.is_absolute() and path.is_relative_to(home):
                folder = path.relative_to(home).parts[0]
                if folder not in OTHERS and not path.name.startswith("."):
                    kind = "cache" if folder in ("cache", "blobs") else FILES[name]
                    tell(f"{kind} {folder}")

    sys.addaudithook(audit)
