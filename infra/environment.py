"""Environment variables that Prefect and MLflow read; nothing here imports them, for that takes seconds."""

import json
import os
from base64 import urlsafe_b64encode
from hashlib import sha256

from infra import allocator, storage
from infra.settings import settings


def prefect_environment() -> dict[str, str]:
    """Variables that Prefect reads, for an API in this process or for a server, and its runs' C library."""
    return {
        "PREFECT_HOME": str(settings().home / "prefect"),
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",  # the default of 20 s is tight on a busy machine
        "PREFECT_CLIENT_MAX_RETRIES": "6",  # an API that is away for two minutes ends no run
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY": "false",
        "DO_NOT_TRACK": "1",
        allocator.VARIABLE: str(allocator.LARGE),
        **_console(),
        "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
        # one transaction for each event collides on SQLite with the next flow's first call, and the client then waits
        # 2 s; in batches a 5-task flow takes 0.2 s instead of 1.3 s (docs/decisions/0302)
        "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "200",
        "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "200",
        "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
        "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_READ_BATCH_SIZE": "200",
        "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE": "500",
    }


def _console() -> dict[str, str]:
    """Prefect's own console handler: what matters for people, every line for machines. The API gets every line."""
    if settings().log_format == "json":
        return {"PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "INFO", "PREFECT_LOGGING_HANDLERS_CONSOLE_FORMATTER": "json"}
    return {"PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "WARNING"}


def mlflow_environment() -> dict[str, str]:
    """Variables that MLflow reads, in this process and in the ones it starts."""
    config = settings()
    access, secret = storage.keys()
    wanted = {
        "MLFLOW_TRACKING_URI": config.mlflow_tracking_uri,
        "MLFLOW_TRACKING_USERNAME": config.mlflow_username,
        "MLFLOW_TRACKING_PASSWORD": config.mlflow_password.get_secret_value() if config.mlflow_password else None,
        "MLFLOW_S3_ENDPOINT_URL": storage.s3().meta.endpoint_url,
        "MLFLOW_BOTO_CLIENT_ADDRESSING_STYLE": "path",
        "AWS_ACCESS_KEY_ID": access,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_DEFAULT_REGION": config.s3_region,
        "MLFLOW_S3_UPLOAD_EXTRA_ARGS": _encryption(),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
        **_webhooks(),
    }
    return {name: value for name, value in wanted.items() if value is not None}


def _webhooks() -> dict[str, str]:
    """MLflow sends to nothing but public https addresses, and forgets its webhooks' secrets with the process, unless it
    is told otherwise; a value of the user's own stays."""
    config = settings()
    if config.webhook_url is None or config.webhook_secret is None:
        return {}
    secret = config.webhook_secret.get_secret_value().encode()
    ours = {
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": urlsafe_b64encode(sha256(secret).digest()).decode(),
    }
    return {name: os.environ.get(name, value) for name, value in ours.items()}


def _encryption() -> str | None:
    config = settings()
    if config.s3_encryption is None:
        return None
    key = {"SSEKMSKeyId": config.s3_kms_key} if config.s3_kms_key else {}
    return json.dumps({"ServerSideEncryption": config.s3_encryption, **key})
