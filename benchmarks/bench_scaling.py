"""
What an update costs against the width of the networks, the batch size, the flow steps, the gradient steps of a call of
``train`` and the action dimension; and what a rollout step of ``learn()`` costs against the number of environments.

    python benchmarks/bench_scaling.py

One thing is varied at a time; else the networks are 256x2, the batch 256, the flow steps 1, the gradient steps 1, observations
17 and actions 6. A rollout step asks the policy for an action in each environment, steps them and stores the transitions;
these environments do nothing, and no update is made. One thread. Slopes are those of log cost against log value, by least
squares through all points, and between the last two: 1 is proportional, 0 is free.
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
    """One measured case: what is varied has another value than here."""

    width: int = 256
    batch_size: int = 256
    flow_steps: int = 1
    gradient_steps: int = 1
    action_dim: int = 6
    n_envs: int = 0  # 0 for an update, instead of a rollout step


#: The values of each thing that is varied, and those of a quick run.
SWEEPS: dict[str, list[int]] = {
    "width": [64, 128, 256, 512, 1024],
    "batch_size": [64, 128, 256, 512, 1024, 2048],
    "flow_steps": [1, 2, 5, 10],
    "gradient_steps": [1, 4, 16, 64],
    "action_dim": [2, 4, 8, 16, 32, 64],
    "n_envs": [1, 2, 4, 8, 16],
}
QUICK_VALUES = 2
POLICY_DELAY = 2
OBS_DIM = 17


def make_work(name: str, case: Case) -> Work:
    """
    :param name: the contender
    :param case: its sizes
    :return: makes as many calls of ``train``, or rollout steps, as it is told
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
    :param parameter: what is varied
    :param args: the script's options
    :return: the milliseconds of each contender at each value in each round
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
    :param name: the contender
    :param parameter: what is varied
    :return: whether it means anything to it
    """
    if parameter == "flow_steps":
        return name in SETTINGS
    return parameter != "n_envs" or name not in SETTINGS or name in EAGER[:1]  # settings are for updates


def slopes(values: Sequence[float], costs: Sequence[float]) -> tuple[float, float]:
    """
    :param values: of what is varied
    :param costs: at each of them
    :return: the slope in logarithms through all points, and between the last two
    """
    x, y = np.log(values), np.log(costs)
    return float(np.polyfit(x, y, 1)[0]), float((y[-1] - y[-2]) / (x[-1] - x[-2]))


def one_unit(parameter: str) -> str:
    """
    :param parameter: what is varied
    :return: what is timed
    """
    return "a rollout step" if parameter == "n_envs" else "an update"


def draw(results: dict[str, dict[str, dict[int, list[float]]]], path: Path) -> None:
    """
    :param results: milliseconds by what is varied, contender and value, in each round
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
        # A decade at least, lest what hardly changes looks steep
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
