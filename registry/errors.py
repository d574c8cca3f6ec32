"""What can go wrong, split by whether trying again could help.

* PipelineError
  + TransientError              a store or a worker was unreachable; Prefect retries
    - StorageUnavailableError
  + TerminalError               the inputs or the recorded state forbid this step
    - StreamFileError           the stream file cannot be read or contradicts itself
    - SourceError               a batch's object is missing, cut or has no usable row
    - UnsupportedBackboneError
    - UnknownIdError            nothing of that id is in the catalog
    - StateError                the step does not apply in the recorded state
    - StaleEpochError           work started before a deletion; its result must not be registered
    - OvertakenError            a lock was lost, and another process has begun on the stream since
    - StorageRefusedError       the object store answers, and refuses: keys, rights or a rule of its own
    - MissingObjectError
    - TamperedBlobError
    - BadWeightsError           tensors that are no safetensors, of wrong shapes, or not finite
    - PurgeError                the store kept what a purge must remove
    - SuppressedRecordError     the release gate found a path from a suppressed record
    - CertificateError
    - TamperedLogError          the audit log of tickets was changed
"""


class PipelineError(Exception):
    """Base of every error this project raises on purpose."""


class TransientError(PipelineError):
    """Trying again may succeed."""


class TerminalError(PipelineError):
    """Trying again cannot succeed."""


class StorageUnavailableError(TransientError):
    """The object store does not answer."""


class StorageRefusedError(TerminalError):
    """The object store answers and refuses, and will go on until someone gives the right or mends the keys."""


class StreamFileError(TerminalError):
    """The stream file cannot be used; the message names the field and the remedy."""


class SourceError(TerminalError):
    """A source object cannot be taken in; the message names the object and the remedy."""


class UnsupportedBackboneError(TerminalError):
    """The model's architecture offers no place to attach adapters."""


class UnknownIdError(TerminalError):
    def __init__(self, kind: str, id_: str, known: str = "") -> None:
        super().__init__(f"no {kind} {id_!r} in the catalog" + (f"; known: {known}" if known else ""))


class StateError(TerminalError):
    """The recorded state forbids this step; the message says what to do first."""


class StaleEpochError(TerminalError):
    def __init__(self, what: str, started: int, current: int) -> None:
        super().__init__(
            f"{what} started at deletion epoch {started}, the stream is at {current}: a ticket came in between; "
            "nothing was registered, run again"
        )


class OvertakenError(TerminalError):
    def __init__(self, stream: str, holder: str) -> None:
        super().__init__(
            f"the lock of stream {stream!r} was lost, its connection to the catalog was cut, and {holder} has begun to "
            "work on the stream since: this step was not entered; run the command again, it goes on from what is there"
        )


class MissingObjectError(TerminalError):
    """An object that the catalog names is not in the store."""


class TamperedBlobError(TerminalError):
    """The bytes of an object do not match its digest."""


class BadWeightsError(TerminalError):
    """An adapter or a blob of tensors that must not be stored or served; the message names it and the remedy."""


class PurgeError(TerminalError):
    """The store kept a version or a row that a purge must remove: the deletion is not done."""


class SuppressedRecordError(TerminalError):
    """A version that suppressed records shaped must not serve."""


class CertificateError(TerminalError):
    """A certificate does not verify."""


class TamperedLogError(TerminalError):
    """An entry of the audit log was changed, taken out or put in."""
