"""Addresses of pages that belong together: the Prefect run that did something, the MLflow version that came of it."""

from prefect.context import FlowRunContext, TaskRunContext
from prefect.utilities.urls import url_for

from infra import tracking
from infra.settings import settings


def prefect_run() -> str | None:
    """The flow run of this step as Markdown, a link where a server shows it; None outside of a run."""
    flow, task = FlowRunContext.get(), TaskRunContext.get()
    found = flow.flow_run.id if flow and flow.flow_run else task.task_run.flow_run_id if task else None
    if found is None:
        return None
    name = flow.flow_run.name if flow and flow.flow_run else str(found)
    page = url_for("flow-run", found)
    return f"[{name}]({page})" if page else f"{name} (`{found}`)"


def mlflow_version(stream: str, version: int) -> str:
    """A version as Markdown, a link where an MLflow server shows it."""
    named = f"{stream}/{version}"
    if not tracking.has_server():
        return named
    return f"[{named}]({settings().mlflow_tracking_uri}/#/models/{stream}/versions/{version})"
