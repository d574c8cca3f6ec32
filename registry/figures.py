"""Figures of a run, drawn from plain lists: shift heat map, accuracy matrix, growth of adapters."""

from collections.abc import Mapping, Sequence
from math import isnan

from matplotlib.axes import Axes
from matplotlib.figure import Figure


def draw_shift(z_scores: Mapping[str, Mapping[str, float]]) -> Figure:
    """Heat map of z-scores, layers down, adapters across; adapters that lack a layer stay white."""
    layers = list(z_scores)
    adapters = list(dict.fromkeys(adapter for row in z_scores.values() for adapter in row))
    values = [[z_scores[layer].get(adapter, float("nan")) for adapter in adapters] for layer in layers]
    return _heat_map(values, layers, adapters, "z-score by layer and adapter", "magma_r", None)


def draw_accuracy(rows: Sequence[tuple[str, Sequence[float]]], batches: Sequence[str]) -> Figure:
    """Accuracy on each batch (across) by named rows (down); what was not measured is not a number, and stays white."""
    names, values = [name for name, _ in rows], [cells for _, cells in rows]
    return _heat_map(values, names, list(batches), "accuracy on earlier batches", "viridis", (0.0, 1.0))


def draw_growth(states: Mapping[str, Sequence[int]], batches: Sequence[str]) -> Figure:
    """Number of adapters in each state after each batch, stacked."""
    figure, axes = _axes(len(batches), 4)
    axes.stackplot(range(len(batches)), list(states.values()), labels=list(states), step="mid")
    axes.set_xticks(range(len(batches)), batches, rotation=45, ha="right", parse_math=False)
    axes.set_ylabel("adapters")
    axes.set_title("growth of adapters")
    axes.legend(loc="upper left")
    return figure


def _heat_map(
    values: Sequence[Sequence[float]],
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    colours: str,
    limits: tuple[float, float] | None,
) -> Figure:
    figure, axes = _axes(len(columns), len(rows))
    low, high = limits or (None, None)
    if rows and columns:
        image = axes.imshow(values, cmap=colours, vmin=low, vmax=high, aspect="auto")
        figure.colorbar(image)
    # a name is no formula, whatever dollars it has
    axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right", parse_math=False)
    axes.set_yticks(range(len(rows)), rows, parse_math=False)
    axes.set_title(title)
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            if not isnan(value):
                axes.text(j, i, f"{value:.2f}", ha="center", va="center", color="tab:red", fontsize=8)
    return figure


def _axes(columns: int, rows: int) -> tuple[Figure, Axes]:
    # Figure without pyplot: no global state, safe in threads
    figure = Figure(figsize=(4 + 0.7 * columns, 2.5 + 0.4 * rows), layout="constrained")
    return figure, figure.add_subplot()
