"""
Compute means and standard errors of learning curves with rl_zoo3's own plots.
"""

import contextlib
import io
import pickle
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any
from unittest.mock import patch

import matplotlib
import numpy as np

from .finished import Results

matplotlib.use("Agg")
from rl_zoo3.plots.all_plots import all_plots

#: By task and label: rl_zoo3's "timesteps", "mean" and "std_error".
Curves = dict[tuple[str, str], dict[str, Any]]


def learning_curves(results: Results) -> Curves:
    """
    Write the evaluations as rl_zoo3 would have written them, and let its ``all_plots`` read them.

    :param results: the study's results
    :return: mean over runs and episodes, and standard error over runs, for every task and algorithm with a finished run
    """
    study = results.study
    # all_plots looks for folders whose names contain the task's
    folders = {env: f"task{index:03d}" for index, env in enumerate(study.environments)}
    curves: Curves = {}
    with tempfile.TemporaryDirectory() as logs:
        for each in results.finished:
            folder = Path(logs) / each.run.label / f"{folders[each.run.env]}_{each.run.seed}"
            folder.mkdir(parents=True)
            returns = each.returns()
            if returns.shape[1] == 1:  # all_plots can't read one episode; two equal ones have the same mean
                returns = np.repeat(returns, 2, axis=1)
            np.savez(folder / "evaluations.npz", timesteps=each.steps, results=returns)
        output = Path(logs) / "curves"
        arguments = ["--algos", *study.algorithms, "--env", *folders.values(), "--exp-folders", logs, "--labels", "study"]
        options = ["--no-display", "--max-timesteps", str(study.steps), "--output", str(output)]
        with patch.object(sys, "argv", ["all_plots", *arguments, *options]), contextlib.redirect_stdout(io.StringIO()):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about empty legends of tasks without a finished run
                all_plots()
        merged = pickle.loads(output.with_suffix(".pkl").read_bytes())
    for env, folder_name in folders.items():
        for label in study.algorithms:
            if (curve := merged[folder_name].get(f"{label.upper()}-study")) is not None:
                curves[env, label] = curve
    return curves
