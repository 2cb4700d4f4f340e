"""What a reader sees in the figures."""

from types import SimpleNamespace

import numpy as np
import pytest

from studies import figures as figures_module
from studies.figures import Figures

CURVE = dict(timesteps=np.array([0, 100]), mean=np.array([1.0, 2.0]), std_error=np.array([0.1, 0.1]))
LABELS = ["flowrl", "flowrl-4steps", "sac", "crossq", "without-relu"]


@pytest.mark.parametrize("n_tasks", [1, 2, 4, 5, 7])
def test_learning_curves_name_the_algorithms_and_leave_no_panel_empty(n_tasks, tmp_path, monkeypatch):
    drawn = []

    def keep(figure, stem):
        legends = [*figure.legends, *(legend for axis in figure.axes if (legend := axis.get_legend()))]
        drawn.append([text.get_text() for legend in legends for text in legend.get_texts()])
        drawn.append([bool(axis.lines) for axis in figure.axes if axis.axison])
        return stem

    monkeypatch.setattr(figures_module, "_save", keep)
    tasks = [f"task{index}" for index in range(n_tasks)]
    results = SimpleNamespace(study=SimpleNamespace(environments=tasks), of=lambda env, label: [])
    curves = {(task, label): CURVE for task in tasks for label in LABELS}
    Figures(tmp_path, LABELS).learning_curves("curves", results, curves, LABELS)
    names, panels = drawn
    assert names == ["FlowRL", "FlowRL-4steps", "SAC", "CrossQ", "without-relu"]
    assert panels == [True] * n_tasks
