"""Who trains what a deployed run needs, where a worker that was counted on never came."""

from types import SimpleNamespace

import pytest
from prefect import get_client
from prefect.states import Failed, Pending, Scheduled

from flows.learn import learn
from flows.train import train
from registry.errors import StateError
from registry.records import Decision, DecisionKind, Shard
from registry.sections import TaskOptions
from tasks import runs
from tasks.batches import open_stream
from tasks.forgetting import begin
from tasks.handover import hand_over, load_shard
from tasks.prediction import open_job
from tests.flows.conftest import make_stream


@pytest.mark.usefixtures("prefect_api")
@pytest.mark.parametrize(("taken", "trains"), [(Scheduled(), "here"), (Pending(), "elsewhere")])
def test_training_that_no_worker_took_is_placed_anew_when_the_run_that_wanted_it_is_over(
    tmp_path, monkeypatch, taken, trains
):
    stream = make_stream("left", tmp_path, tmp_path, tasks=TaskOptions(pool="nobody"))
    shard = Shard(1, "b1", "01", "default", 40, 8, 40)
    decision = Decision(DecisionKind.EXPAND, f"left-{trains}", "shifted")
    with get_client(sync_client=True) as client:
        owner, mine = (client.create_flow_run(learn) for _ in range(2))
        fields = {"parameters": {"waiting": str(owner.id)}, "tags": [f"adapter:{decision.adapter_id}"]}
        training = client.create_flow_run(train, state=taken, **fields)
        monkeypatch.setenv("PREFECT__FLOW_RUN_ID", str(mine.id))
        assert hand_over.fn(stream, shard, decision) == training.id, "the other run waits for it"
        client.set_flow_run_state(owner.id, Failed(), force=True)
        found = hand_over.fn(stream, shard, decision)
        cancelled = client.read_flow_run(training.id).state.is_cancelled()
    assert (found, cancelled) == ((None, True) if trains == "here" else (training.id, False))


@pytest.mark.parametrize(
    ("first_step", "given"),
    [(open_stream, ["mail"]), (load_shard, ["mail", 1]), (begin, ["t-1"]), (open_job, ["mail", [], None])],
)
def test_a_run_that_keeps_losing_its_worker_is_not_resumed_for_ever(monkeypatch, first_step, given):
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", "the run of a worker")
    monkeypatch.setattr(runs, "this_run", SimpleNamespace(run_count=runs.ATTEMPTS + 1))
    with pytest.raises(StateError, match="lost its worker 5 times"):
        first_step.fn(*given)
