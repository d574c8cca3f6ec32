"""Aliases of a model in MLflow. The caller gives the client: MLflow's own, or any with its five calls for aliases."""

from typing import Any

from registry.errors import UnknownIdError

TAG_PREFIX = "deciduous."
NOT_THERE = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}


def set_alias(client: Any, model: str, alias: str, version: int) -> None:
    """Point the alias at the version. Raises UnknownIdError when there is no such version."""
    try:
        client.set_registered_model_alias(model, alias, str(version))
    except Exception as error:
        if _code(error) not in NOT_THERE:
            raise
        raise UnknownIdError("model version", f"{model} version {version}") from error


def find_alias(client: Any, model: str, alias: str) -> int | None:
    """The version the alias points at; None when there is no such alias or model."""
    try:
        return int(client.get_model_version_by_alias(model, alias).version)
    except Exception as error:
        if _code(error) in NOT_THERE:
            return None
        raise


def move_alias(client: Any, model: str, alias: str, version: int | None, note: str) -> None:
    """Point the alias at the version, or remove it; the version's page says who did so, when and why, for MLflow keeps
    no history of its own. Nothing happens where it is so already; broken off, it can be called again."""
    before = find_alias(client, model, alias)
    if before == version:
        return
    if before is not None:
        _drop_note(client, model, alias, before)
    if version is None:
        client.delete_registered_model_alias(model, alias)
        return
    # the note first: once the alias stands, a repeated call finds nothing to do
    client.set_model_version_tag(model, str(version), f"{TAG_PREFIX}{alias}", note)
    set_alias(client, model, alias, version)


def _drop_note(client: Any, model: str, alias: str, version: int) -> None:
    try:
        client.delete_model_version_tag(model, str(version), f"{TAG_PREFIX}{alias}")
    except Exception as error:
        if _code(error) not in NOT_THERE:
            raise


def _code(error: Exception) -> str | None:
    """MLflow's name for what went wrong; its own client and ours carry it under the same name."""
    return getattr(error, "error_code", None)
