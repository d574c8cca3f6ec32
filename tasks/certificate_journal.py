"""Every certificate in S3, where no garbage collection looks: what a restored catalog would otherwise not know."""

from infra import storage
from infra.settings import settings
from registry import artifacts
from registry.records import StoredObject
from tasks.certificates import Certificate, verify

PREFIX = "certificates/"


def note(stream: str, certificate: bytes) -> None:
    """Keep a certificate whose place in the log is committed; one that is there stays as it is."""
    artifacts.put_blob(storage.s3(), settings().artifact_bucket, f"{PREFIX}{stream}", certificate)


def noted(stream: str) -> list[tuple[StoredObject, Certificate]]:
    """Every certificate of the stream, with its content, in no order. Raises TamperedBlobError for changed bytes."""
    here = artifacts.list_current(storage.s3(), settings().artifact_bucket, f"{PREFIX}{stream}/")
    return [_read(version.key) for version in here]


def _read(key: str) -> tuple[StoredObject, Certificate]:
    sha256 = key.rsplit("/", 1)[-1]
    data = artifacts.get_blob(storage.s3(), settings().artifact_bucket, key, sha256)
    content = verify(data)
    return StoredObject(key, sha256, len(data), "certificate", f"ticket:{content['ticket']}"), content
