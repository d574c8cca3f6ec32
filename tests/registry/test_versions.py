"""What a ticket on a batch has to withdraw."""

from datetime import UTC, datetime, timedelta

from registry import catalog, versions
from registry.records import BatchState, ModelVersion, VersionState
from registry.tables import BatchRow, VersionRow
from tests.registry.conftest import add_batch

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


def receive(session, name: str, minute: int) -> str:
    batch_id = add_batch(session, name).batch_id
    session.get_one(BatchRow, batch_id).received_at = BEGIN + timedelta(minutes=minute)
    return batch_id


def register(session, number: int, cause: str, minute: int) -> None:
    found = ModelVersion("mail", number, f"run-{number}", "key", 0, VersionState.READY, None, "for this test")
    versions.add_version(session, found, "sha", cause)
    session.get_one(VersionRow, ("mail", number)).created_at = BEGIN + timedelta(minutes=minute)


def test_what_was_registered_before_a_batch_led_to_a_version_may_rest_on_it(session):
    early, late = receive(session, "01", 0), receive(session, "02", 20)
    for number, cause in enumerate([f"batch:{early}", "merge:x", "ticket:y", f"batch:{late}"], 1):
        register(session, number, cause, 10 * number)
    assert versions.registered_since(session, "mail", [early, late]) == [1, 2, 3, 4]
    assert versions.registered_since(session, "mail", [late]) == [2, 3, 4]
    versions.set_state(session, "mail", 2, VersionState.ERASED)
    assert versions.registered_since(session, "mail", [late]) == [3, 4]
    assert versions.registered_since(session, "mail", []) == []


def test_a_held_batch_shaped_no_version(session):
    held = receive(session, "01", 0)
    register(session, 1, "merge:x", 10)
    catalog.set_batch_state(session, held, BatchState.HELD)
    assert versions.registered_since(session, "mail", [held]) == []


def test_a_clock_that_goes_behind_hides_no_version_that_a_batch_led_to(session):
    batch_id = receive(session, "01", 30)
    register(session, 1, f"batch:{batch_id}", 10)
    register(session, 2, "merge:x", 20)
    assert versions.registered_since(session, "mail", [batch_id]) == [1, 2]
