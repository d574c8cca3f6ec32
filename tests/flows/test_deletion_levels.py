"""What a certificate claims in each case (E0, E1, A, Q), and what its monitors say."""

import pytest
import torch

from infra import database
from registry import ownership, versions
from registry.records import TicketState
from tasks import comparison, queries, rebuilding, training
from tasks import tickets as opening
from tasks.certificates import render_markdown
from tasks.held_back import held_file
from tasks.markers import escrow
from tasks.policies import guarantee as levels
from tests.flows.adversary import (
    assert_complete,
    assert_nothing_tainted_serves,
    certificate_of,
    champion_of,
    forget,
    learned_stream,
    open_ticket,
    state_of,
)

pytestmark = [pytest.mark.usefixtures("ready", "plain_steps"), pytest.mark.services]


@pytest.fixture(scope="module")
def stream(ready, backbone, tmp_path_factory):  # noqa: ARG001
    return learned_stream("levels", backbone, tmp_path_factory.mktemp("levels"), subjects=40)


def assert_nothing_is_held_back(ticket_id: str) -> None:
    assert not held_file(ticket_id).exists()
    assert not escrow(ticket_id).exists()


def noisy_training(monkeypatch, scale: float) -> None:
    """Training that gives no bytes twice, as on a GPU: its weights end up somewhere near."""
    draw, train_slice = torch.Generator().manual_seed(9), training.train_slice

    def somewhere_near(*args, **kwargs):
        state = train_slice(*args, **kwargs)
        moved = {n: t + scale * t.abs().mean() * torch.randn(t.shape, generator=draw) for n, t in state.adapter.items()}
        return type(state)(moved, state.head, state.labels, state.optimizer, state.epoch)

    monkeypatch.setattr(training, "train_slice", somewhere_near)


def test_suppressed_is_labelled_a_and_stays_open_until_it_is_trained_again(stream):
    targets = opening.resolve_targets(stream.name, ["person-1", "person-2", "person-3"], [])
    ticket = opening.open_ticket(stream.name, targets, "test", approximate=True)
    forget(ticket.ticket_id)
    closed, interim = state_of(ticket.ticket_id), certificate_of(ticket.ticket_id)
    assert closed.state == TicketState.EXCEPTION
    assert "was suppressed, not trained again" in closed.note
    assert interim["guarantee"] == "A"
    assert "Nothing is claimed as deleted" in interim["scope"]
    assert set(interim["rebuilt"]["actions"].values()) == {"suppress", "replay"}
    for report in interim["rebuilt"]["suppressed"].values():
        assert set(report["log_likelihood_of_records"]) == {"before", "after", "int8", "int4", "int1"}
        assert report["log_likelihood_of_half"]["after_relearning_the_other_half"] < 0
        assert report["served_precision"] == "float32"
    with database.transaction() as session:
        assert "not deleted (guarantee A)" in versions.get_version(session, stream.name, champion_of(stream)).reason
        suppressed = [
            ownership.get_object(session, f"adapter:{a}", "weights").sha256 for a in interim["rebuilt"]["suppressed"]
        ]
    described = queries.describe(ticket.ticket_id)
    assert (described["guarantee"], described["suppressed"]) == ("A", interim["rebuilt"]["suppressed"])
    assert held_file(ticket.ticket_id).exists()  # for the exact work that is still to come

    opening.reopen_ticket(ticket.ticket_id, "ann", "the GPU is free")
    assert champion_of(stream) is None
    assert queries.describe(ticket.ticket_id)["guarantee"] == "Q"
    forget(ticket.ticket_id)
    assert_complete(ticket.ticket_id)
    exact = certificate_of(ticket.ticket_id)
    assert (exact["guarantee"], exact["rebuilt"]["suppressed"]) == ("E0", {})
    with database.transaction() as session:
        for adapter, before in zip(interim["rebuilt"]["suppressed"], suppressed, strict=True):
            assert ownership.get_object(session, f"adapter:{adapter}", "weights").sha256 != before
    assert_nothing_is_held_back(ticket.ticket_id)

    monitors = exact["monitors"]
    assert monitors["rmia"]["forgotten"] == monitors["pooled"]["forgotten"] > 10
    assert (monitors["alarms"], "privacy_leak_percent" in monitors["before"]) == ([], True)
    assert "can fail a ticket and never pass one alone" in render_markdown(exact)


def test_where_bytes_are_not_reproducible_it_is_e1_and_a_skipped_training_is_not(stream, monkeypatch):
    monkeypatch.setattr(comparison, "is_reproducible", lambda _: False)
    with monkeypatch.context() as patch:
        noisy_training(patch, 1e-3)
        ticket = open_ticket(stream, "person-5")
        forget(ticket.ticket_id)
    assert_complete(ticket.ticket_id)
    content = certificate_of(ticket.ticket_id)
    assert content["guarantee"] == "E1"
    assert "gives no bytes twice" in content["scope"]
    assert any(found.get("within_noise") for found in content["comparison"].values())

    skipped = open_ticket(stream, "person-6")
    with monkeypatch.context() as patch:
        noisy_training(patch, 1e-3)
        patch.setattr(rebuilding, "fit_trained", lambda _stream, adapter, *_, **__: adapter)
        forget(skipped.ticket_id)
    assert state_of(skipped.ticket_id).state == TicketState.EXCEPTION
    assert certificate_of(skipped.ticket_id)["guarantee"] == "Q"
    assert_nothing_tainted_serves(stream)
    traces = [found.get("trace") for found in certificate_of(skipped.ticket_id)["comparison"].values()]
    assert max(trace["share"] for trace in traces if trace) > 0.2
    opening.reopen_ticket(skipped.ticket_id, "ann", "mended")
    forget(skipped.ticket_id)
    assert_complete(skipped.ticket_id)


def test_noise_where_bytes_are_reproducible_is_no_guarantee(stream, monkeypatch):
    ticket = open_ticket(stream, "person-7")
    with monkeypatch.context() as patch:
        noisy_training(patch, 1e-6)
        forget(ticket.ticket_id)
    content = certificate_of(ticket.ticket_id)
    assert (state_of(ticket.ticket_id).state, content["guarantee"]) == (TicketState.EXCEPTION, "Q")
    assert "Nothing is claimed as deleted" in content["scope"]
    opening.reopen_ticket(ticket.ticket_id, "ann", "mended")
    forget(ticket.ticket_id)
    assert certificate_of(ticket.ticket_id)["guarantee"] == "E0"


def test_an_alarm_makes_an_exception_until_a_person_has_looked(stream, monkeypatch):
    """The monitor hears more than there is; nothing else is left to do."""
    ticket = open_ticket(stream, "person-8", "person-9")
    with monkeypatch.context() as patch:
        patch.setattr(levels, "SPEAKS_FROM", 1)
        patch.setattr(levels, "ALARM", -100.0)
        forget(ticket.ticket_id)
        closed = state_of(ticket.ticket_id)
        assert closed.state == TicketState.EXCEPTION
        assert "membership monitor" in closed.note
        assert certificate_of(ticket.ticket_id)["guarantee"] == "Q"
        opening.reopen_ticket(ticket.ticket_id, "ann", "somebody who stays wrote the same")
        forget(ticket.ticket_id)
    assert_complete(ticket.ticket_id)
    content = certificate_of(ticket.ticket_id)
    assert (content["guarantee"], len(content["monitors"]["alarms"])) == ("E0", 2)
    assert_nothing_is_held_back(ticket.ticket_id)
