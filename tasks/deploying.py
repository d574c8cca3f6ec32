"""Bring a Prefect server in line with what is wanted: work pools, deployments, automations. Idempotent."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import yaml
from prefect import Flow
from prefect import __version__ as prefect_version
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate, WorkPoolCreate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterTags
from prefect.client.schemas.objects import ConcurrencyLimitStrategy, ConcurrencyOptions
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule
from prefect.events.schemas.automations import Automation, AutomationCore
from prefect.exceptions import ObjectNotFound
from prefect.utilities.callables import parameter_schema

from infra.workers import PoolType, job_template
from registry.errors import StreamFileError
from tasks.runs import every_page

Fields = dict[str, Any]


@dataclass(frozen=True)
class Wanted:
    """One deployment as it should be."""

    flow: Flow[..., Any]
    name: str
    entrypoint: str
    """Dotted: a path would load the module a second time under another name."""
    pool: str
    description: str
    tags: tuple[str, ...]
    parameters: Fields
    cron: str | None = None
    concurrency: int | None = None

    @property
    def full_name(self) -> str:
        return f"{self.flow.name}/{self.name}"


@dataclass(frozen=True, slots=True)
class Change:
    """What a deploy did, or would do: create, change, keep or remove."""

    action: str
    what: str
    details: str = ""


def apply_pools(pools: Sequence[str], kind: PoolType, dry_run: bool) -> Iterator[Change]:
    """Create the pools that are missing. One that is there keeps its template: a person may have edited it."""
    with get_client(sync_client=True) as client:
        for pool in pools:
            try:
                client.read_work_pool(pool)
            except ObjectNotFound:
                if not dry_run:
                    template = job_template(kind, pool)
                    client.create_work_pool(WorkPoolCreate(name=pool, type=kind.value, base_job_template=template))
                yield Change("create", f"work pool {pool}", kind.value)
            else:
                yield Change("keep", f"work pool {pool}")


def apply_deployments(wanted: Iterable[Wanted], dry_run: bool) -> Iterator[Change]:
    """Create or update each; one that is as wanted is not touched."""
    with get_client(sync_client=True) as client:
        for each in wanted:
            found = find_deployment(client, each.full_name)
            before, after = {} if found is None else _fields_found(found), _fields_wanted(each)
            changed = {
                name: f"{before.get(name)} -> {after[name]}" for name in after if before.get(name) != after[name]
            }
            if changed and not dry_run:
                _create(client, each, is_paused(found))
            if found is None:
                yield Change("create", f"deployment {each.full_name}", _summary(each))
            else:
                lines = [f"{name}: {text if len(text) < 200 else 'changed'}" for name, text in changed.items()]
                lines += ["its schedule is paused"] if is_paused(found) else []
                yield Change("change" if changed else "keep", f"deployment {each.full_name}", "\n".join(lines))


def apply_automations(wanted: Iterable[AutomationCore], dry_run: bool) -> Iterator[Change]:
    """Create or update automations by name."""
    with get_client(sync_client=True) as client:
        for each in wanted:
            found = _find_automation(client, each.name)
            same = found is not None and _without_ids(found) == _without_ids(each)
            if not same and not dry_run:
                if found is None:
                    client.create_automation(each)
                else:
                    client.update_automation(found.id, each)
            action = "create" if found is None else "keep" if same else "change"
            yield Change(action, f"automation {each.name}", "" if each.enabled else "off until configured")


def remove(tag: str, prefix: str, dry_run: bool) -> Iterator[Change]:
    """Delete the deployments of a tag and the automations of a prefix; pools stay, other streams may use them."""
    with get_client(sync_client=True) as client:
        for found in client.read_deployments(deployment_filter=_tagged(tag)):
            flow = client.read_flow(found.flow_id)
            if not dry_run:
                client.delete_deployment(found.id)
            yield Change("remove", f"deployment {flow.name}/{found.name}")
        for automation in every_page(lambda offset: client.read_automations(offset=offset)):
            if automation.name.startswith(prefix):
                if not dry_run:
                    client.delete_automation(automation.id)
                yield Change("remove", f"automation {automation.name}")


def prefect_yaml(wanted: Iterable[Wanted]) -> str:
    """The same deployments as a prefect.yaml, for `prefect deploy --all`."""
    deployments = [
        {
            "name": each.name,
            "entrypoint": each.entrypoint,
            "description": each.description,
            "tags": list(each.tags),
            "parameters": deepcopy(each.parameters),  # YAML would write an anchor for a shared one
            "schedules": [{"cron": each.cron, "timezone": "UTC"}] if each.cron else [],
            "concurrency_limit": each.concurrency,
            "work_pool": {"name": each.pool},
        }
        for each in wanted
    ]
    content = {"name": "deciduous", "prefect-version": prefect_version, "deployments": deployments}
    text: str = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)
    return text


def find_deployment(client: SyncPrefectClient, full_name: str) -> DeploymentResponse | None:
    try:
        return client.read_deployment_by_name(full_name)
    except ObjectNotFound:
        return None


def is_deployed(flow: str, stream: str) -> bool:
    """Whether a server is there that would run this flow for the stream."""
    if not os.environ.get("PREFECT_API_URL"):
        return False
    with get_client(sync_client=True) as client:
        return find_deployment(client, f"{flow}/{stream}") is not None


def deployment_id(full_name: str) -> Any:
    """The id of a deployment, None before it was created."""
    with get_client(sync_client=True) as client:
        found = find_deployment(client, full_name)
    return None if found is None else found.id


def is_paused(found: DeploymentResponse | None) -> bool:
    """Whether a person has switched the schedule off, which no deploy undoes."""
    return found is not None and bool(found.schedules) and not any(each.active for each in found.schedules)


def _create(client: SyncPrefectClient, each: Wanted, paused: bool) -> None:
    client.create_deployment(
        client.create_flow(each.flow),
        each.name,
        schedules=[DeploymentScheduleCreate(schedule=_schedule(each.cron), active=not paused)] if each.cron else [],
        concurrency_limit=each.concurrency,
        concurrency_options=_enqueue(each),
        parameters=each.parameters,
        description=each.description,
        work_pool_name=each.pool,
        tags=list(each.tags),
        entrypoint=each.entrypoint,
        parameter_openapi_schema=parameter_schema(each.flow).model_dump_for_openapi(),
        enforce_parameter_schema=True,
    )


def _enqueue(each: Wanted) -> ConcurrencyOptions | None:
    if each.concurrency is None:
        return None
    return ConcurrencyOptions(collision_strategy=ConcurrencyLimitStrategy.ENQUEUE)


def _schedule(cron: str) -> CronSchedule:
    try:
        return CronSchedule(cron=cron, timezone="UTC")
    except ValueError as error:
        raise StreamFileError(f"schedule {cron!r} is no cron expression ({error}); correct it") from None


def _fields_wanted(each: Wanted) -> Fields:
    return {
        "description": each.description,
        "tags": sorted(each.tags),
        "schedule": [_schedule(each.cron).cron] if each.cron else [],
        "concurrency": each.concurrency,
        "parameters": each.parameters,
        "pool": each.pool,
        "entrypoint": each.entrypoint,
        "form": _form(parameter_schema(each.flow).model_dump_for_openapi()),
    }


def _fields_found(found: DeploymentResponse) -> Fields:
    limit = found.global_concurrency_limit
    return {
        "description": found.description,
        "tags": sorted(found.tags),
        "schedule": [getattr(each.schedule, "cron", str(each.schedule)) for each in found.schedules],
        "concurrency": None if limit is None else limit.limit,
        "parameters": found.parameters,
        "pool": found.work_pool_name,
        "entrypoint": found.entrypoint,
        "form": _form(found.parameter_openapi_schema or {}),
    }


def _form(schema: Fields) -> Fields:
    """What of a schema makes the form; Prefect's own command leaves empty parts out."""
    return {part: schema.get(part) or None for part in ("properties", "required", "definitions")}


def _summary(each: Wanted) -> str:
    limit = f", at most {each.concurrency} at once" if each.concurrency else ""
    return f"pool {each.pool}, {f'cron {each.cron!r}' if each.cron else 'no schedule'}{limit}"


def _tagged(tag: str) -> DeploymentFilter:
    return DeploymentFilter(tags=DeploymentFilterTags(all_=[tag]))


def _find_automation(client: SyncPrefectClient, name: str) -> Automation | None:
    return next((each for each in client.read_automations_by_name(name) if each.name == name), None)


def _without_ids(automation: AutomationCore) -> Any:
    """What a person would call the same automation: the server adds ids and an owner."""
    kept = automation.model_dump(mode="json", include={"description", "enabled", "trigger", "actions"})
    return _stripped(kept)


def _stripped(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _stripped(each) for name, each in value.items() if name != "id"}
    if isinstance(value, list):
        plain = [_stripped(each) for each in value]
        return sorted(plain) if all(isinstance(each, str) for each in plain) else plain  # sets have no order
    return value
