"""
Draw the figures of a report. The same numbers give the same files, as long as matplotlib's version stays the same.

A figure is an SVG file, or a PNG file if the SVG would be larger than ``MAX_SVG_BYTES``.
"""

import io
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import Any, Literal

import matplotlib

matplotlib.use("Agg")
import numpy as np
import seaborn
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from PIL import Image
from rliable import plot_utils

from .estimates import AGGREGATES, Estimate, Statistics
from .finished import Results
from .zoo_plots import Curves

STYLE: dict[Any, Any] = {
    "svg.hashsalt": "study",  # otherwise the ids in the file are random
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
}
Place = Literal["outside lower center", "outside upper center"]
TEXT = {"labelsize": "medium", "ticklabelsize": "medium"}
MAX_COLUMNS = 3
#: How many letters of a legend fit beside each other.
LEGEND_LETTERS = 60
NAMES = {"flowrl": "FlowRL", "sac": "SAC", "td3": "TD3", "tqc": "TQC", "crossq": "CrossQ"}
#: Larger SVG files slow down the pages that show them, and the repository keeps every version.
MAX_SVG_BYTES = 200_000
#: Dots per inch and number of colors of PNG files.
PNG_DPI, PNG_COLORS = 90, 64


def name_algorithm(label: str) -> str:
    """
    Write the algorithm's name in a label as people do.

    :param label: label of a study's definition, such as "flowrl-4steps"
    :return: its name in figures, such as "FlowRL-4steps"
    """
    algorithm, dash, variant = label.partition("-")
    return NAMES.get(algorithm, algorithm) + dash + variant


class Figures:
    """
    Draws the figures of a report into a folder.

    :param folder: the folder; it is made if need be
    :param labels: labels of all algorithms; each has the same color in all figures
    """

    def __init__(self, folder: Path, labels: Sequence[str]):
        self.folder = folder
        self.colors = dict(zip(labels, seaborn.color_palette("colorblind", len(labels)), strict=True))
        self.named_colors = {name_algorithm(label): color for label, color in self.colors.items()}
        self.paths: dict[str, Path] = {}

    def learning_curves(self, name: str, results: Results, curves: Curves, labels: Sequence[str]) -> Path:
        """
        Draw learning curves: thick the mean with its standard error, thin the single runs.

        :param name: the file's name without its ending
        :param results: the study's results
        :param curves: means and standard errors
        :param labels: the algorithms to draw
        :return: the file
        """
        envs = [env for env in results.study.environments if any((env, label) in curves for label in labels)]
        columns = min(len(envs), MAX_COLUMNS if len(envs) != 4 else 2)
        rows = -(-len(envs) // columns)
        with self._drawing(name, rows, columns, (4.2 * columns, 3.1 * rows)) as (figure, axes):
            for axis, env in zip(axes, envs, strict=False):
                for label in labels:
                    if (curve := curves.get((env, label))) is None:
                        continue
                    steps, mean, error = curve["timesteps"], curve["mean"], curve["std_error"]
                    color = self.colors[label]
                    axis.plot(steps, mean, color=color, linewidth=2, label=name_algorithm(label))
                    axis.fill_between(steps, mean - error, mean + error, color=color, alpha=0.2, linewidth=0)
                    for each in results.of(env, label):
                        axis.plot(each.steps, each.returns().mean(axis=1), color=color, linewidth=0.6, alpha=0.5)
                axis.set_title(env)
                _label_steps(axis)
            for axis in axes[::columns]:
                axis.set_ylabel("mean return")
            for axis in axes[len(envs) :]:
                axis.set_axis_off()
            _add_legend(figure, axes, panel=axes[len(envs)] if len(envs) < len(axes) else None)
        return self.paths[name]

    def instruments(self, results: Results, quantities: Sequence[str]) -> Path:
        """
        Draw what the instruments measured: thick the mean, thin the single runs, a column for each task.

        :param results: the study's results
        :param quantities: what was measured; each gets a row
        :return: the file
        """
        measured = results.diagnosed
        envs = [env for env in results.study.environments if any(each.run.env == env for each in measured)]
        rows, columns = len(quantities), len(envs)
        with self._drawing("instruments", rows, columns, (2.6 * columns + 0.8, 1.7 * rows)) as (figure, axes):
            for index, axis in enumerate(axes):
                quantity, env = quantities[index // columns], envs[index % columns]
                for label in results.study.algorithms:
                    runs = [each.measured(quantity) for each in measured if (each.run.env, each.run.label) == (env, label)]
                    runs = [(steps, values) for steps, values in runs if len(steps)]
                    if not runs:
                        continue
                    for steps, values in runs:
                        axis.plot(steps, values, color=self.colors[label], linewidth=0.6, alpha=0.5)
                    common = reduce(np.intersect1d, [steps for steps, _ in runs])
                    mean = np.mean([values[np.isin(steps, common)] for steps, values in runs], axis=0)
                    axis.plot(common, mean, color=self.colors[label], linewidth=2, label=name_algorithm(label))
                if index < columns:
                    axis.set_title(env)
                if index % columns == 0:
                    axis.set_ylabel(textwrap.fill(quantity.replace("_", " "), 18))
                _label_steps(axis)
                if index < len(axes) - columns:
                    axis.set_xlabel("")
            _add_legend(figure, axes, "outside upper center")  # visible without scrolling
        return self.paths["instruments"]

    def aggregates(self, statistics: Statistics) -> Path:
        """
        Draw the aggregates with their intervals.

        :param statistics: of the study
        :return: the file
        """
        labels = list(reversed(statistics.aggregates))  # the first on top
        height = 0.8 + 0.35 * len(labels)
        with self._drawing("aggregates", 1, len(AGGREGATES), (9.0, height)) as (_, axes):
            for index, (axis, aggregate) in enumerate(zip(axes, AGGREGATES, strict=True)):
                for row, label in enumerate(labels):
                    value, low, high = statistics.aggregates[label][index]
                    axis.barh(row, high - low, left=low, height=0.6, color=self.colors[label], alpha=0.75)
                    axis.vlines(value, row - 0.3, row + 0.3, color="black")
                axis.use_sticky_edges = False  # otherwise the first bar would begin at the edge
                axis.set_title(aggregate)
                axis.set_yticks(range(len(labels)), [name_algorithm(label) if index == 0 else "" for label in labels])
                axis.grid(axis="y", visible=False)
                axis.set_xlabel("score")
        return self.paths["aggregates"]

    def profiles(self, statistics: Statistics) -> Path:
        """
        Draw the performance profiles.

        :param statistics: of the study
        :return: the file
        """
        values, intervals = _unpack(statistics.profiles)
        with self._drawing("profiles", 1, 1, (6.0, 3.6)) as (figure, axes):
            options: dict[str, Any] = dict(
                colors=self.named_colors, xlabel="score τ", ylabel="share of runs with a score > τ", **TEXT
            )
            plot_utils.plot_performance_profiles(values, statistics.thresholds, intervals, ax=axes[0], **options)
            _thin_axes(axes[0])
            _add_legend(figure, axes)
        return self.paths["profiles"]

    def efficiency(self, statistics: Statistics) -> Path:
        """
        Draw the IQM against the environment steps.

        :param statistics: of the study
        :return: the file
        """
        values, intervals = _unpack(statistics.efficiency)
        with self._drawing("efficiency", 1, 1, (6.0, 3.6)) as (figure, axes):
            options: dict[str, Any] = dict(colors=self.named_colors, ylabel="IQM of the scores", marker="", **TEXT)
            plot_utils.plot_sample_efficiency_curve(statistics.steps, values, intervals, ax=axes[0], **options)
            _label_steps(axes[0])
            _thin_axes(axes[0])
            _add_legend(figure, axes)
        return self.paths["efficiency"]

    def improvement(self, statistics: Statistics) -> Path:
        """
        Draw the probabilities that a run of one algorithm beats one of another.

        :param statistics: of the study
        :return: the file
        """
        pairs = list(reversed(statistics.improvement))
        with self._drawing("improvement", 1, 1, (6.0, 0.8 + 0.35 * len(pairs))) as (_, axes):
            for row, pair in enumerate(pairs):
                value, low, high = statistics.improvement[pair][0]
                axes[0].barh(row, high - low, left=low, height=0.6, color=self.colors[pair[0]], alpha=0.75)
                axes[0].vlines(value, row - 0.3, row + 0.3, color="black")
            axes[0].set_yticks(range(len(pairs)), [" > ".join(map(name_algorithm, pair)) for pair in pairs])
            axes[0].axvline(0.5, color="black", linewidth=0.8, linestyle="--")
            axes[0].set(xlim=(-0.02, 1.02), xlabel="probability")
            axes[0].grid(axis="y", visible=False)
        return self.paths["improvement"]

    @contextmanager
    def _drawing(self, name: str, rows: int, columns: int, size: tuple[float, float]) -> Iterator[tuple[Figure, np.ndarray]]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with plt.rc_context({**matplotlib.rcParamsDefault, **STYLE, "backend": "agg"}):
            figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
            try:
                yield figure, axes.ravel()
                self.paths[name] = _save(figure, self.folder / name)
            finally:
                plt.close(figure)


def _save(figure: Figure, stem: Path) -> Path:
    """Write a figure as SVG or PNG, delete an earlier file of the other kind, and return the new file."""
    svg, png = stem.with_suffix(".svg"), stem.with_suffix(".png")
    drawn = io.BytesIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    if len(drawn.getvalue()) <= MAX_SVG_BYTES:
        svg.write_bytes(drawn.getvalue())
        png.unlink(missing_ok=True)
        return svg
    pixels = io.BytesIO()
    figure.savefig(pixels, format="png", dpi=PNG_DPI)
    Image.open(pixels).convert("RGB").quantize(PNG_COLORS).save(png, optimize=True)
    svg.unlink(missing_ok=True)
    return png


def _label_steps(axis: Axes) -> None:
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.set_xlabel("environment steps")
    axis.set_xlim(left=0)


def _thin_axes(axis: Axes) -> None:
    """Undo rliable's changes to the axes, so that all figures look alike."""
    for spine in axis.spines.values():
        spine.set_linewidth(matplotlib.rcParams["axes.linewidth"])
        spine.set_position(("outward", 0))


def _add_legend(figure: Figure, axes: np.ndarray, place: Place = "outside lower center", panel: Axes | None = None) -> None:
    """Put one legend of all axes outside of them, or into the panel that none of them needs."""
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    if panel is not None:
        panel.legend(handles.values(), handles, loc="center", frameon=False)
        return
    letters = sum(len(label) + 6 for label in handles)  # with the line before it
    columns = len(handles) if letters <= LEGEND_LETTERS else MAX_COLUMNS
    figure.legend(handles.values(), handles, loc=place, ncols=columns, frameon=False)


def _unpack(estimates: dict[str, Estimate]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    return (
        {name_algorithm(label): estimate.value for label, estimate in estimates.items()},
        {name_algorithm(label): estimate.interval for label, estimate in estimates.items()},
    )
