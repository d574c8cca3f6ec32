"""Who trains what a deployed run needs, where a worker that was counted on never came."""

import pytest
from prefect import get_client
from prefect.states import Failed, Pending, Scheduled

from flows.learn import learn
from flows.train import train
from registry.records import Decision, DecisionKind, Shard
from registry.sections import TaskOptions
from tasks.handover import hand_over
from tests.flows.conftest import make_stream

pytestmark = pytest.mark.usefixtures("prefect_api")


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
