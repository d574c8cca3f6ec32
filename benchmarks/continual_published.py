"""SEMA and MOS as published, on the streams of the benchmark."""

from torch import Tensor

from benchmarks.continual_stream import Run, split_rows
from tasks.learning.adapters import AdapterSpec
from tasks.learning.mos import Mos, answer, learn_batch, solve_mos_head
from tasks.learning.sema import Sema, SemaOptions, add_statistics, answer_sema, enter_suffix, learn_first, learn_next


def run_sema(run: Run) -> None:
    """`run.cut` is 0: the first batch trains adapters in every block."""
    watched = min(SemaOptions().watched, run.backbone.num_blocks)  # all of them, where there are fewer
    sema = Sema(run.backbone, SemaOptions(watched=watched))
    shards: list[tuple[list[Tensor], list[str]]] = []
    tests: list[list[Tensor]] = []
    for number, batch in enumerate(run.batches):
        labels = batch.train_labels
        _, held_out = split_rows(labels, run.seed)
        states = run.train_states(number)
        with run.meter.measure("train"):
            if number == 0:
                scan = learn_first(sema, states, labels, held_out, run.seed)
                shards.append((enter_suffix(sema, states), labels))
            else:
                shards.append((enter_suffix(sema, states), labels))
                scan = learn_next(sema, shards[-1][0], labels, held_out, run.seed)
            head = add_statistics(sema, shards, grown=bool(scan.expanded))
        embedded = run.test_states(number)
        with run.meter.measure("inference"):
            tests += [enter_suffix(sema, rows) for rows in embedded[len(tests) :]]
            run.record([answer_sema(sema, head, rows) for rows in tests])
        told = {"decision": "expand" if scan.expanded else "reuse", "p_value": None, "z_scores": scan.z_scores}
        run.decisions.append({**told, "adapter": [f"{block}.{number}" for block in scan.expanded]})
    run.adapters_by_layer = {str(block): len(mixture.adapters) for block, mixture in sema.mixtures.items()}
    run.trainable_parameters = sum(t.numel() for m in sema.mixtures.values() for t in m.to_tensors().values())


def run_mos(run: Run) -> None:
    """Adapters from `run.cut` on; one per batch, as published, so every decision is to expand."""
    spec = AdapterSpec(last_layers=run.backbone.num_blocks - run.cut)
    mos = Mos(run.cut, spec)
    for number, batch in enumerate(run.batches):
        states = run.train_states(number)
        with run.meter.measure("train"):
            learn_batch(mos, run.backbone, states, batch.train_labels, run.seed)
            head = solve_mos_head(mos, run.seed)
        tests = run.test_states(number)
        with run.meter.measure("inference"):
            run.record([answer(mos, head, run.backbone, rows).labels for rows in tests])
        run.decisions.append({"decision": "expand", "p_value": None, "z_scores": {}, "adapter": f"adapter-{number}"})
    run.adapters_by_layer = {str(block): len(mos.adapters) for block in range(run.cut, run.backbone.num_blocks)}
    run.trainable_parameters = sum(t.numel() for adapter in mos.adapters for t in adapter.values())
