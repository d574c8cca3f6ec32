import pytest

from tasks.policies.placement import Place, place_training


@pytest.mark.parametrize(
    ("deployed", "pool", "workers", "wait", "place", "why"),
    [
        (False, "gpu", 3, True, Place.HERE, "belongs to no deployment"),
        (True, None, 0, True, Place.HERE, "names no pool"),
        (True, "gpu", 1, False, Place.POOL, "1 live worker in pool 'gpu'"),
        (True, "gpu", 2, True, Place.POOL, "2 live workers"),
        (True, "gpu", 0, True, Place.POOL, "waiting for one"),
        (True, "gpu", 0, False, Place.HERE, "no live worker"),
    ],
)
def test_training_goes_to_the_pool_of_a_deployed_stream(deployed, pool, workers, wait, place, why):
    placed = place_training(deployed, pool, workers, wait)
    assert placed.place == place
    assert why in placed.reason
