"""
Measure how the costs of updates and of rollout steps depend on their sizes.

    python benchmarks/bench_scaling.py

The cost of an update is measured against the width of the networks, the batch size, the flow steps, the gradient steps per
call of ``train``, and the action dimension. The cost of a rollout step of ``learn()`` is measured against the number of
environments.

One size is varied at a time. The others are: networks of 256x2, batch 256, one flow step, one gradient step, 17-dimensional
observations, 6-dimensional actions. A rollout step asks the policy for an action in each environment, steps the environments
and stores the transitions. These environments do nothing, and there are no updates. Everything uses one thread.

Slopes are those of log cost against log value: a least-squares fit through all points, and the slope between the last two. A
slope of 1 means that the cost is proportional to the value, 0 that it does not depend on it.
"""

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from bench import (
    ARCHITECTURES,
    EAGER,
    SETTINGS,
    IdleEnv,
    Record,
    Work,
    add_contender_option,
    add_timing_options,
    fill_replay_buffer,
    in_fresh_process,
    make_model,
    make_parser,
    parse,
    print_table,
    time_in_turns,
    updates,
)
from stable_baselines3.common.vec_env import DummyVecEnv


@dataclass(frozen=True)
class Case:
    """
    Describe one measured case.

    The defaults are the values that are not varied.
    """

    width: int = 256
    batch_size: int = 256
    flow_steps: int = 1
    gradient_steps: int = 1
    action_dim: int = 6
    n_envs: int = 0  # 0 for an update instead of a rollout step


#: The values of each size that is varied.
SWEEPS: dict[str, list[int]] = {
    "width": [64, 128, 256, 512, 1024],
    "batch_size": [64, 128, 256, 512, 1024, 2048],
    "flow_steps": [1, 2, 5, 10],
    "gradient_steps": [1, 4, 16, 64],
    "action_dim": [2, 4, 8, 16, 32, 64],
    "n_envs": [1, 2, 4, 8, 16],
}
#: How many of these values a quick run measures.
QUICK_VALUES = 2
POLICY_DELAY = 2
OBS_DIM = 17


def make_work(name: str, case: Case) -> Work:
    """
    Return the work of a contender in one case.

    :param name: the contender
    :param case: its sizes
    :return: a function that makes the given number of calls of ``train``, or of rollout steps
    """
    arguments = dict(flow_steps=case.flow_steps) if name in SETTINGS else {}
    model: Any = make_model(
        name,
        DummyVecEnv([lambda: IdleEnv(OBS_DIM, case.action_dim)] * max(case.n_envs, 1)),
        replace(ARCHITECTURES["256x2"], width=case.width),
        buffer_size=10_000,
        learning_starts=0,
        gradient_steps=0,
        **arguments,
    )
    if case.n_envs:
        return lambda steps: model.learn(steps * case.n_envs, reset_num_timesteps=False)
    fill_replay_buffer(model.replay_buffer)
    return updates(model, case.batch_size, case.gradient_steps)


def measure(parameter: str, args: Namespace) -> dict[str, dict[int, list[float]]]:
    """
    Time all contenders at all values of a size.

    :param parameter: the size that is varied
    :param args: the script's options
    :return: milliseconds of each contender at each value in each round
    """
    values = SWEEPS[parameter][: QUICK_VALUES if args.quick else None]
    cases = {
        (name, value): Case(**{parameter: value})
        for name in args.contenders
        for value in values
        if takes_part(name, parameter)
    }
    work = {f"{name} {value}": make_work(name, case) for (name, value), case in cases.items()}
    rates = time_in_turns(work, args.rounds, args.seconds, POLICY_DELAY)
    costs: dict[str, dict[int, list[float]]] = {}
    for (name, value), case in cases.items():
        milliseconds = [1e3 / (rate * case.gradient_steps) for rate in rates[f"{name} {value}"]]
        costs.setdefault(name, {})[value] = milliseconds
    return costs


def takes_part(name: str, parameter: str) -> bool:
    """
    Decide whether a contender is measured against a size.

    :param name: the contender
    :param parameter: the size that is varied
    :return: whether it is. Only FlowRL has flow steps, and its settings do not change rollout steps, so one setting is enough
    """
    if parameter == "flow_steps":
        return name in SETTINGS
    return parameter != "n_envs" or name not in SETTINGS or name in EAGER[:1]  # settings change only updates


def slopes(values: Sequence[float], costs: Sequence[float]) -> tuple[float, float]:
    """
    Compute the slopes of log cost against log value.

    :param values: values of the size that is varied
    :param costs: the cost at each value
    :return: the slope of a fit through all points, and the slope between the last two
    """
    x, y = np.log(values), np.log(costs)
    return float(np.polyfit(x, y, 1)[0]), float((y[-1] - y[-2]) / (x[-1] - x[-2]))


def one_unit(parameter: str) -> str:
    """
    Name what is timed.

    :param parameter: the size that is varied
    :return: its name, with the article
    """
    return "a rollout step" if parameter == "n_envs" else "an update"


def draw(results: dict[str, dict[str, dict[int, list[float]]]], path: Path) -> None:
    """
    Plot all costs.

    :param results: milliseconds in each round, by size that is varied, contender and value
    :param path: the picture to write
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    plain = FuncFormatter(lambda number, position: f"{number:g}")
    columns = min(3, len(results))
    rows = -(-len(results) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(4.6 * columns, 3.8 * rows), squeeze=False)
    for axis in grid.flat[len(results) :]:
        axis.set_visible(False)
    names = list(dict.fromkeys(name for costs in results.values() for name in costs))
    for axis, (parameter, costs) in zip(grid.flat, results.items(), strict=False):
        axis.set(xscale="log", yscale="log", xlabel=parameter.replace("_", " "), ylabel=f"ms of {one_unit(parameter)}")
        for name, samples in costs.items():
            values = list(samples)
            low, middle, high = np.quantile(list(samples.values()), [0, 0.5, 1], axis=1)
            color = f"C{names.index(name)}"
            axis.plot(values, middle, "o-", color=color, label=name, markersize=4)
            axis.fill_between(values, low, high, color=color, alpha=0.2)
        # Show at least a decade, so that small changes do not look steep
        low, high = axis.get_ylim()
        margin = max(1.0, (10 * low / high) ** 0.5)
        axis.set_ylim(low / margin, high * margin)
        axis.set_xticks(values)
        axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        for scale in (axis.xaxis, axis.yaxis):
            scale.set_major_formatter(plain)
            scale.set_minor_locator(NullLocator())
        axis.grid(alpha=0.3)
    handles = {}
    for axis in grid.flat:
        handles.update({label: handle for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)})
    figure.legend(handles.values(), handles.keys(), loc="upper center", ncols=len(names), frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.95))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    print(f"\nwrote {path}")


def main() -> None:
    """Run the benchmark with the options of the command line."""
    parser = make_parser(__file__, __doc__)
    add_timing_options(parser, rounds=5, seconds=1.0)
    add_contender_option(parser, [*SETTINGS, "SAC"])
    parser.set_defaults(contenders=["FlowRL float32", "FlowRL bfloat16 compiled", "SAC"])
    parser.add_argument("--sweeps", nargs="+", choices=SWEEPS, default=list(SWEEPS))
    args = parse(parser, rounds=2, seconds=0.01, contenders=["FlowRL float32", "SAC"], sweeps=["width", "n_envs"])
    record = Record(args)
    results = {}
    fitted: dict[str, dict[str, tuple[float, float]]] = {}
    for parameter in args.sweeps:
        costs = results[parameter] = in_fresh_process(measure, parameter, args)
        rows = []
        for name, samples in costs.items():
            values, medians = list(samples), [float(np.median(each)) for each in samples.values()]
            fitted.setdefault(parameter, {})[name] = slopes(values, medians)
            rows.append([name, *(f"{cost:.2f}" for cost in medians), *(f"{slope:.2f}" for slope in fitted[parameter][name])])
        title = f"## Milliseconds of {one_unit(parameter)} against {parameter}, medians, one thread"
        print_table(title, [parameter, *map(str, values), "slope", "last slope"], rows)
        record.write(milliseconds=results, slopes=fitted)
    draw(results, args.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
