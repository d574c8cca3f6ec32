import pytest

from tasks.policies.retirement import Routing, choose_retirements


def routing(held_out=0, answered=0, answered_rows=0, age=20) -> Routing:
    return Routing("a", 1000, held_out, answered_rows, answered, age)


@pytest.mark.parametrize(
    ("of", "retires"),
    [
        pytest.param(routing(), True, id="nobody asks"),
        pytest.param(routing(held_out=10), False, id="asked for at the share"),
        pytest.param(routing(held_out=9), True, id="asked for less"),
        pytest.param(routing(age=19), False, id="younger than the window"),
        pytest.param(routing(answered=500, answered_rows=1000), False, id="callers use it"),
        pytest.param(routing(answered=1, answered_rows=1000), True, id="callers hardly use it"),
        pytest.param(routing(answered=5000, answered_rows=0), False, id="callers use it, of groups that are not known"),
        pytest.param(Routing("a", 0, 0, 0, 0, 99), False, id="nothing was measured"),
    ],
)
def test_an_adapter_retires_when_nobody_asks_for_it(of, retires):
    chosen = choose_retirements([of], share=0.01, window=20)
    assert bool(chosen) is retires
    if chosen:
        assert f"{of.held_out_visits} of 1000 held-out rows of the last 20 batches" in chosen[0].reason
        assert chosen[0].figures["held_out_share"] == of.held_out_visits / 1000


def test_a_share_of_zero_retires_nobody():
    assert choose_retirements([routing()], share=0, window=20) == []
