"""The figures themselves are for a quiet machine; here: what stands in for the tensors still fits the flows."""

import json

import pytest

from benchmarks import orchestration_worker


@pytest.mark.usefixtures("prefect_api")
def test_batches_are_learned_without_a_tensor(tmp_path, capsys):
    orchestration_worker.main("stubbed", 2, tmp_path, 0)
    took = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(took["old"]) == 2
    assert all(seconds > 0 for seconds, _ in took["old"])
