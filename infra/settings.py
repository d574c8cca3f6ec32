"""Where the outside world is. Read once from DECIDUOUS_* environment variables."""

import os
import re
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, SecretStr, ValidationError, ValidationInfo
from pydantic_settings import BaseSettings, SettingsConfigDict

from infra.errors import SettingsError

AWS = "aws"
AbsolutePath = Annotated[Path, AfterValidator(lambda path: path.expanduser().resolve())]
BUCKET = r"^[a-zA-Z0-9._-]{3,255}$"


def _can_hold_databases(home: Path) -> Path:
    if "?" in str(home):
        raise ValueError(f"{home} holds a '?', at which the address of a database ends; name another folder")
    return home


def _comes_with_its_access_key(secret: SecretStr | None, fields: ValidationInfo) -> SecretStr | None:
    if (secret is None) != (fields.data.get("s3_access_key") is None):
        raise ValueError("goes together with DECIDUOUS_S3_ACCESS_KEY; set both or neither")
    return secret


def _apart_from_artifacts(inbox: str, fields: ValidationInfo) -> str:
    """`deciduous gc` removes every version of what it does not know under streams/NAME/: deliveries that lie there."""
    if inbox == fields.data.get("artifact_bucket"):
        raise ValueError(f"{inbox!r} is DECIDUOUS_ARTIFACT_BUCKET too, whose unknown objects gc removes; name another")
    return inbox


def _without_login(uri: str) -> str:
    if re.match(r"https?://[^/]*@", uri):
        raise ValueError("addresses are shown; put the login into DECIDUOUS_MLFLOW_USERNAME and ..._PASSWORD")
    return uri.rstrip("/")


def _sqlite_in_home(name: str) -> Any:
    return Field(default_factory=lambda fields: f"sqlite:///{fields['home'] / name}", repr=False)


class Settings(BaseSettings):
    """Addresses and secrets; what a user tunes is in the stream file. Its repr shows no secret."""

    model_config = SettingsConfigDict(
        env_prefix="DECIDUOUS_", frozen=True, env_ignore_empty=True, hide_input_in_errors=True, validate_default=True
    )

    home: Annotated[AbsolutePath, AfterValidator(_can_hold_databases)] = Path(".deciduous")
    database_url: str = _sqlite_in_home("catalog.db")
    database_pool: int = Field(default=5, ge=1)
    """Connections that a process keeps open to PostgreSQL; under load it opens as many again."""
    database_statement_seconds: float = Field(default=60, ge=0)
    """PostgreSQL ends a statement that takes longer; 0 for no limit."""
    s3_endpoint: str | None = Field(default=None, pattern=r"^(aws$|https?://[^/\s])")
    """None means the embedded SeaweedFS; 'aws' means Amazon's, found as AWS tools find it."""
    s3_access_key: SecretStr | None = None
    s3_secret_key: Annotated[SecretStr | None, AfterValidator(_comes_with_its_access_key)] = None
    s3_region: str = Field(default="us-east-1", pattern=r"^[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?$")
    s3_encryption: Literal["AES256", "aws:kms"] | None = None
    """What the server is asked to encrypt every written object with; None leaves it to the bucket's own rule."""
    s3_kms_key: str | None = None
    artifact_bucket: str = Field(default="deciduous", pattern=BUCKET)
    inbox_bucket: Annotated[str, AfterValidator(_apart_from_artifacts)] = Field(default="inbox", pattern=BUCKET)
    mlflow_tracking_uri: Annotated[str, AfterValidator(_without_login)] = _sqlite_in_home("mlflow.db")
    mlflow_database_url: str | None = Field(default=None, repr=False)
    """Where a deletion reaches the rows that an MLflow server keeps; None where the tracking URI is a database."""
    mlflow_username: str | None = None
    mlflow_password: SecretStr | None = None
    hash_key: SecretStr | None = Field(default=None, min_length=16)
    retired_hash_keys: SecretStr | None = None
    """Earlier values of the hash key, with commas between: what was stored under them is still found."""
    signing_key: AbsolutePath | None = None
    log_format: Literal["text", "json"] = "text"
    """What commands and workers write to the standard error: lines for people, or a JSON object a line."""
    threads: int = Field(default=2, ge=1)
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:[0-9]+)?)$")
    """What trains in this process: auto takes a GPU where torch sees one; cpu, cuda, cuda:1. All else is the CPU's."""
    follow: Literal["version", "champion"] = "version"
    """What a loaded model answers with: the version that it is, or the stream's champion, swapped in when it moves."""
    serving_seconds: float = Field(default=15, ge=0, le=60)
    """Age at which a serving process asks the catalog again which version may answer."""
    entitlements: AbsolutePath | None = None
    """YAML file of grants: stream, caller, groups."""
    require_entitlements: bool = Field(default_factory=lambda fields: not fields["database_url"].startswith("sqlite"))
    """Without a file of grants nobody is answered; false leaves it to whoever asks. Default: where the catalog is on a
    server, which many reach, and not a file of this home."""
    entitlement_seconds: float = Field(default=30, ge=0, le=60)
    """Age at which grants are read again: a revocation takes effect within this time."""
    object_bytes: int = Field(default=2 << 30, ge=1)
    """Largest object of a source, as it lies there and unpacked: it is read into memory."""
    state_cache_bytes: int = Field(default=20 << 30, ge=0)
    """Hidden states of the frozen prefix, all streams together; the least recently used go first."""
    device_flops: float | None = Field(default=None, gt=0)
    """FLOP/s of the device, for the choice to keep hidden states or compute them again; None for a usual value."""
    disk_bandwidth: float = Field(default=1e9, gt=0)
    """Bytes/s that the home's disk reads, for the same choice."""
    blob_cache_bytes: int = Field(default=4 << 30, ge=0)
    """Local copies of tensors from the artifact bucket; the least recently used go first."""
    webhook_url: str | None = None
    """Where MLflow's webhooks reach `deciduous watch`, for example http://watch:8090; None listens nowhere."""
    webhook_secret: SecretStr | None = Field(default=None, min_length=16)
    notify: str | None = Field(default=None, pattern=r"^[a-z0-9-]+/[a-z0-9-]+$")
    """Prefect block that notifications go to, as TYPE/NAME, for example slack-webhook/ops; None leaves them off."""


@cache
def settings() -> Settings:
    """The settings of this process. `settings.cache_clear()` reads the environment anew: what other
    modules of this room cache is keyed by the values, so nothing else has to be reset.

    A variable comes first, then a file of DECIDUOUS_SECRETS (a folder, a file per lower-case variable), then what
    `deciduous up --production-like` wrote into the home. Raises SettingsError."""
    secrets = os.environ.get("DECIDUOUS_SECRETS") or None
    if secrets is not None and not os.path.isdir(secrets):
        # a mount that failed: the defaults would stand in for the servers that it names
        raise SettingsError(f"DECIDUOUS_SECRETS: {secrets} is no folder; mount or make it, or unset the variable")
    try:
        return Settings(_env_file=served_file(Settings(_secrets_dir=secrets).home), _secrets_dir=secrets)
    except ValidationError as error:
        faults = [
            f"DECIDUOUS_{str(each['loc'][0]).upper()}: {each['msg']}"
            for each in error.errors(include_input=False)
            if each["type"] != "default_factory_not_called"  # it only waits for the home, which is among the faults
        ]
        raise SettingsError(f"settings to correct: {'; '.join(faults)}") from None


def served_file(home: Path) -> Path:
    """Addresses and secrets of the servers that run for this home."""
    return home / "served.env"
