"""Start what an event should have started: tickets without a run."""

from prefect import flow

from tasks.missed import start_missed


@flow(name="catch-up", flow_run_name="{stream}: catch up")
def catch_up(stream: str) -> list[str]:
    """Return the ids of the tickets that were started. Every run of `learn` does the same first."""
    return start_missed(stream)
