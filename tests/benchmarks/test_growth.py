"""What the benchmark of growth says where it cannot measure."""

from argparse import Namespace

import pytest

from benchmarks import growth


def test_a_stream_of_which_nothing_is_learned_is_told(monkeypatch, set_variable, tmp_path):
    set_variable("HOME", tmp_path)  # the benchmark sets it anew
    monkeypatch.setattr(growth.opening, "open_home", lambda: None)
    for name, answer in (("stream_in", None), ("learn", None), ("num_serving", 0), ("counted_decisions", {"hold": 1})):
        monkeypatch.setattr(growth, name, lambda *_, answer=answer: answer)
    with pytest.raises(SystemExit, match="nothing serves: all 1 batches were held, with too few --rows \\(5\\)"):
        growth.run(tmp_path, Namespace(batches=1, rows=5, domains=1, questions=1, seed=1), "kept", None)
