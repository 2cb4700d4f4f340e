"""
Make the report of a study, one Markdown page and one HTML page, from the finished runs' files alone.

The files are ``report.md``, ``report.html`` and ``figures/`` in ``<results>/<study>/``, beside the definition and the runs.
``findings.md`` there is written by hand and becomes part of the pages.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .coverage import entropy, n_ways, success_rate
from .estimates import (
    AGGREGATES,
    CONFIDENCE,
    REPLICATIONS,
    Block,
    Estimate,
    Statistics,
    aggregate,
    choose_block,
    compute,
    final_scores,
    interval_of_mean,
)
from .figures import Figures
from .finished import Finished, Results, collect
from .page import to_html
from .records import Folders, differences, effective_arguments, name_policy_arguments, write_atomically
from .study import DETERMINISTIC_ALGOS, Study
from .zoo_plots import learning_curves

#: Number of last evaluations that are averaged, to see whether the result depends on the very last one.
LAST = 5
#: Shares of the steps at which the tables show intermediate results.
MILESTONES = (0.1, 0.25, 0.5, 0.75, 1.0)
FINDINGS = "findings.md"
#: Quantities that the instruments measure, in the order of the tables and figures.
QUANTITIES = (
    "action_spread",
    "saturated_actions",
    "q_bias",
    "monte_carlo_return",
    "behavior_advantage",
    "guidance_active",
    "q_gradient_norm",
    "constraint_gradient_norm",
    "gradient_cosine",
    "weighted_flow_matching_loss",
    "critic_rank",
    "critic_feature_norm",
    "critic_dead_units",
)


def write_report(study: Study, folders: Folders) -> list[Path]:
    """
    Write the report of a study.

    :param study: the study
    :param folders: the folders of files
    :return: the pages
    :raises StudyError: if the study's folder holds records of other runs under the same names
    """
    folder = folders.results / study.name
    results = collect(study, folders)
    markdown = Report(results, folder).text()
    pages = {folder / "report.md": markdown, folder / "report.html": to_html(markdown, study.name, folder)}
    for path, text in pages.items():
        write_atomically(path, text)
    return list(pages)


class Report:
    """
    Makes the Markdown page and its figures.

    :param results: the study's results
    :param folder: the folder of the page
    """

    def __init__(self, results: Results, folder: Path):
        self.results, self.study, self.folder = results, results.study, folder
        self.labels = list(self.study.algorithms)
        self.figures = Figures(folder / "figures", self.labels)

    def text(self) -> str:
        """
        Draw the figures and write the page.

        :return: the page
        """
        parts = [f"# {self.study.name}", self.study.description.strip(), self._state(), self._findings()]
        if self.results.finished:
            statistics = compute(self.results)
            parts += [
                "## Over all tasks",
                *(self._over_all_tasks(statistics) if statistics else [self._why_no_statistics()]),
                "## Task by task",
                *self._task_by_task(),
                "## Deterministic and stochastic",
                *self._both_modes(),
                *self._coverage(),
                *self._instruments(),
                "## How it was done",
                *self._protocol(),
            ]
        return "\n\n".join(part for part in parts if part) + "\n"

    # ------------------------------------------------------------------------------------------------------------- parts

    def _state(self) -> str:
        n_finished, n_missing = len(self.results.finished), len(self.results.missing)
        state = f"**{n_finished} of {n_finished + n_missing} runs are finished.**"
        unfinished: dict[tuple[str, str], list[str]] = {}
        for run in self.results.missing:
            if run.name not in self.results.failures:
                unfinished.setdefault((run.label, run.env), []).append(str(run.seed))
        if unfinished:
            runs = "; ".join(f"{label} on {env}, {', '.join(seeds)}" for (label, env), seeds in sorted(unfinished.items()))
            state += f" Not finished, and in none of the numbers (with their seeds): {runs}."
        if self.results.failures:
            failures = [
                f"- [{name}](failures/{name}.txt): `{traceback.strip().splitlines()[-1]}`"
                for name, traceback in self.results.failures.items()
            ]
            state += "\n\nFailed:\n\n" + "\n".join(failures)
        if mixed := list(self._mixed()):
            state += "\n\n**Averaged over runs that were not made alike:**\n\n" + "\n".join(mixed)
        return state

    def _mixed(self) -> Iterable[str]:
        """
        List the runs whose arguments differ from those of other runs without the definition asking for it.

        A run is compared with the first one of its task and label. The first run of each label is also compared with the
        task's first run of the same algorithm, except for the arguments that the definition sets.
        """
        for env in self.study.environments:
            firsts: dict[str, Finished] = {}
            for label in self.labels:
                for each in (finished := self.results.of(env, label)):
                    first = firsts.setdefault(each.run.algo, each)
                    if changed := differences(finished[0].record, each.record):
                        yield f"- {self._link(each.run.name, each)}, beside seed {finished[0].run.seed}: {'; '.join(changed)}"
                    asked = {name for one in (first, each) for name in name_policy_arguments(one.run.hyperparameters)}
                    if each is finished[0] and (changed := differences(first.record, each.record, asked)):
                        yield f"- {self._link(each.run.name, each)}, beside {first.run.name}, unasked: {'; '.join(changed)}"

    def _findings(self) -> str:
        path = self.folder / FINDINGS
        return path.read_text(encoding="utf-8").strip() if path.exists() else ""

    def _why_no_statistics(self) -> str:
        return (
            "Nothing can be averaged over tasks yet: that needs a task that every algorithm has finished and on which a "
            "baseline does better than random actions, and at least one seed per algorithm that has finished all such tasks."
        )

    def _over_all_tasks(self, statistics: Statistics) -> Iterable[str]:
        block = statistics.block
        yield (
            "A **score** is 0 for uniformly random actions and 1 for the best baseline's mean return at the end of its runs "
            "on the same task: (return − random) / (best baseline − random). Baselines: "
            f"{', '.join(self.study.baselines)}. The intervals do not include the uncertainty of the two ends of the scale, "
            "which are in a table below."
        )
        yield self._runs_used(block)
        yield (
            f"Scores at {self.study.steps:,} steps, deterministic evaluation, with {CONFIDENCE:.0%} intervals by stratified "
            f"bootstrap over runs ({REPLICATIONS:,} resamplings, rliable):"
        )
        yield self._aggregates_table(statistics.aggregates, block)
        yield "IQM: the mean of the middle half of all runs' scores. Mean: of all scores. Median: of the tasks' mean scores."
        yield self._image("Aggregate scores with intervals", self.figures.aggregates(statistics))
        yield from self._of_more_evaluations()
        if statistics.leaving_out:
            yield "Does the result depend on one task? IQM at the last evaluation without each of the tasks:"
            rows = [[label, *(f"{value:.2f}" for value in values)] for label, values in statistics.leaving_out.items()]
            yield _table(["algorithm", *block.envs], rows)
        yield "IQM of the scores during training, with intervals:"
        indices = self._milestones(statistics.steps)
        yield _table(
            ["algorithm", *(f"{statistics.steps[index]:,}" for index in indices)],
            [
                [label, *(_cell(estimate, index, block, label) for index in indices)]
                for label, estimate in statistics.efficiency.items()
            ],
        )
        yield self._image("IQM against environment steps", self.figures.efficiency(statistics))
        yield "Performance profiles: the share of runs that end with a score above τ, with intervals."
        yield self._image("Performance profiles", self.figures.profiles(statistics))
        if statistics.improvement:
            yield (
                "Probability that a run of the first algorithm ends higher than one of the second, averaged over the tasks, "
                "and the IQM of the first minus that of the second, with intervals:"
            )
            yield _table(
                ["pair", "probability", "difference of the IQMs"],
                [
                    [" > ".join(pair), *(_cell(of[pair], 0, block, *pair) for of in (statistics.improvement, statistics.lead))]
                    for pair in statistics.improvement
                ],
            )
            yield self._image("Probability of improvement", self.figures.improvement(statistics))

    def _aggregates_table(self, aggregates: Mapping[str, Estimate], block: Block) -> str:
        return _table(
            ["algorithm", *AGGREGATES],
            [
                [label, *(_cell(estimate, index, block, label) for index in range(len(AGGREGATES)))]
                for label, estimate in aggregates.items()
            ],
        )

    def _of_more_evaluations(self) -> Iterable[str]:
        """Show the aggregates of the last evaluations together."""
        if len(self.results.finished[0].steps) < 2 * LAST:
            return
        results = replace(self.results, last=LAST)
        block = choose_block(results)
        if block is None:  # averaged over them, no baseline is better than random actions on any task
            return
        yield (
            f"Policies vary from one evaluation to the next, which these intervals do not include. The same table, from the "
            f"mean of each run's last {LAST} evaluations; the best baseline's mean of its last {LAST} has the score 1:"
        )
        yield self._aggregates_table(aggregate(final_scores(results, block)), block)

    def _runs_used(self, block: Block) -> str:
        used = "; ".join(f"{label}: {', '.join(map(str, seeds))}" for label, seeds in block.seeds.items())
        text = f"Averaged over {', '.join(block.envs)}, with the runs of these seeds (the next section links to them): {used}."
        if left_out := [env for env in self.study.environments if env not in block.envs]:
            text += (
                f" Left out, because not every algorithm has finished a run there, or no baseline beats random actions: "
                f"{', '.join(left_out)}."
            )
        smallest = min(len(seeds) for seeds in block.seeds.values())
        if smallest * len(block.envs) < 4:
            text += " Of fewer than four scores, the IQM leaves none out: it is their mean."
        if smallest == 1:
            text += " **One run of an algorithm is no sample: it has no interval, and nothing follows from its rank.**"
        elif smallest < 10:
            text += f" With {smallest} runs a task, bootstrap intervals tend to be too narrow."
        return text

    def _task_by_task(self) -> Iterable[str]:
        yield (
            "Mean return of the last evaluation's episodes, deterministic. The number of each seed links to the run's file. "
            "The interval is that of the mean, by bootstrap over the seeds; with three seeds or fewer it is no more than "
            "their range. Ratio: the mean divided by that of the best baseline. "
            f"Last {LAST}: the mean of the last {LAST} evaluations. "
            "Swing: the standard deviation of these evaluations in a run, averaged over the runs."
        )
        yield _table(
            ["task", "algorithm", "mean", "interval", "score", "ratio", f"last {LAST}", "swing", "seeds"],
            [self._task_row(env, label) for env in self.study.environments for label in self.labels],
        )
        if self.results.scales:
            yield "Where the scale of the scores comes from:"
            rows = [
                [env, _number(random), best, _number(mean), self._seeds(self.results.of(env, best))]
                for env, (random, mean, best) in self.results.scales.items()
            ]
            yield _table(["task", "random actions (score 0)", "best baseline", "its mean (score 1)", "its seeds"], rows)
            yield (
                "Random actions were evaluated before each run. Their number is the mean over all runs of the task, of every "
                "algorithm in the table above."
            )
        yield from self._ratios()
        curves = learning_curves(self.results)
        comparisons = self.study.comparisons or {"": self.labels}
        for index, (title, labels) in enumerate(comparisons.items()):
            if not any((env, label) in curves for env in self.study.environments for label in labels):
                continue
            if title:
                yield f"### {title}"
            path = self.figures.learning_curves(f"curves{index or ''}", self.results, curves, labels)
            yield self._image(f"Learning curves {title}".strip(), path)
        yield (
            "Thick: mean over the seeds, with its standard error as rl_zoo3's plots compute it (they divide by n where the "
            "usual estimate divides by n − 1: for three seeds 0.82 of it). Thin: the single runs. "
            "Mean returns during training (deterministic):"
        )
        yield self._returns_on_the_way()
        yield from self._at_equal_processor_time()

    def _ratios(self) -> Iterable[str]:
        """Compare each algorithm with the best baseline of each task, over the tasks."""
        columns = ["mean ratio", "least", "tasks above 1"]
        rows = []
        for label in self.labels:
            cells = []
            for results in (self.results, replace(self.results, last=LAST)):
                all_ratios = {env: results.ratio(env, label) for env in self.study.environments}
                ratios = {env: ratio for env, ratio in all_ratios.items() if ratio is not None}
                if ratios:
                    least = min(ratios, key=lambda env: ratios[env])
                    n_ahead = sum(ratio > 1 for ratio in ratios.values())
                    mean = f"{sum(ratios.values()) / len(ratios):.2f}"
                    cells += [mean, f"{ratios[least]:.2f}, {least}", f"{n_ahead} of {len(ratios)}"]
            if cells:
                rows.append([label, *cells])
        if rows and all(len(row) == 1 + 2 * len(columns) for row in rows):
            yield "These ratios over the tasks, for the last evaluation and for the mean of the last five:"
            yield _table(["algorithm", *columns, *(f"last {LAST}: {column}" for column in columns)], rows)

    def _at_equal_processor_time(self) -> Iterable[str]:
        """Show what the algorithms reach in the processor time that the fastest needs for all its steps."""
        rows = []
        for env in self.study.environments:
            ran = {label: finished for label in self.labels if (finished := self.results.of(env, label))}
            if len(ran) > 1:
                limit = min(float(np.mean([each.record["cpu_seconds"] for each in finished])) for finished in ran.values())
                cells = [
                    _number(float(np.mean([each.after(limit) for each in ran[label]]))) if label in ran else "not run"
                    for label in self.labels
                ]
                rows.append([env, f"{limit / 60:.1f}", *cells])
        if rows:
            yield (
                "Mean return after the processor time that the fastest algorithm needs (without evaluations; interpolated "
                "linearly between them). The times depend on the machine, on its other work, and on the precision:"
            )
            yield _table(["task", "minutes", *self.labels], rows)

    def _task_row(self, env: str, label: str) -> list[str]:
        finished = self.results.of(env, label)
        if not finished:
            return [env, label, "not run", *[""] * 6]
        finals = [each.final() for each in finished]
        mean = float(np.mean(finals))
        score = f"{self.results.scores(env, mean):.2f}" if env in self.results.scales else ""
        to_best = self.results.ratio(env, label)
        ratio = "" if to_best is None else f"{to_best:.2f}"
        low, high = interval_of_mean(finals)
        interval = f"{_number(low)} to {_number(high)}" if len(finals) > 1 else ""
        seeds = ", ".join(f"{each.run.seed}: {self._link(_number(each.final()), each)}" for each in finished)
        means = (np.mean([each.final(last=LAST) for each in finished]), np.mean([each.swing(LAST) for each in finished]))
        return [env, label, _number(mean), interval, score, ratio, *(_number(float(mean)) for mean in means), seeds]

    def _returns_on_the_way(self) -> str:
        steps = self.results.finished[0].steps
        indices = self._milestones(steps)
        rows = []
        for env, label, finished in self.results.groups(self.results.finished):
            means = np.mean([each.returns().mean(axis=1) for each in finished], axis=0)
            rows.append([env, label, *(_number(means[index]) for index in indices), self._seeds(finished)])
        return _table(["task", "algorithm", *(f"{steps[index]:,}" for index in indices), "seeds"], rows)

    def _both_modes(self) -> Iterable[str]:
        rows, gaps = [], []
        for each in self.results.finished:
            if len(each.run.modes) == 2:
                rows.append([self._link(each.run.name, each), _number(each.final()), _number(each.final("stochastic"))])
        for env, label, finished in self.results.groups(self.results.finished):
            if len(finished[0].run.modes) == 2:
                gap = float(np.mean([each.final() - each.final("stochastic") for each in finished]))
                gaps.append([env, label, _number(gap), self._seeds(finished)])
        if rows:
            averages = any(effective_arguments(each.record).get("actor_tau") for each in self.results.finished)
            of = ", of the moving average of its actor where `actor_tau` is set" if averages else ""
            yield (
                f"The same {'models' if averages else 'policies'}, evaluated with `deterministic=True` (for FlowRL the flow "
                f"from a0 = 0{of}, for SAC and TQC the mean of the distribution) and with actions drawn from the policy: mean "
                "return of the last evaluation."
            )
            yield _table(["run", "deterministic", "stochastic"], rows)
            yield "The difference of the two, averaged over the seeds:"
            yield _table(["task", "algorithm", "deterministic minus stochastic", "seeds"], gaps)
        if plain := [label for label in self.labels if self.study.algorithms[label].algo in DETERMINISTIC_ALGOS]:
            yield f"The policies of {', '.join(plain)} draw no actions."

    def _coverage(self) -> Iterable[str]:
        """Show how evenly the policies use equally good ways, on the tasks that have some."""
        rows = []
        for env, label, finished in self.results.groups(self.results.finished):
            for mode in finished[0].run.modes:
                told = [each for each in finished if each.ways(mode)]
                if not told:
                    continue
                lasts = [each.ways(mode)[-1] for each in told]
                means = [float(np.mean([of(last) for last in lasts])) for of in (success_rate, n_ways, entropy)]
                of_more = [entropy(ways) for each in told for ways in each.ways(mode)[-LAST:]]
                seeds = ", ".join(
                    f"{each.run.seed}: {self._link(f'{entropy(last):.2f}', each)}"
                    for each, last in zip(told, lasts, strict=True)
                )
                numbers = (f"{means[0]:.2f}", f"{means[1]:.1f}", f"{means[2]:.2f}", f"{np.mean(of_more):.2f}")
                rows.append([env, label, mode, *numbers, seeds])
        if rows:
            yield "## Coverage of equally good ways"
            yield (
                "Some tasks can be solved in several equally good ways. For the episodes of the last evaluation, averaged "
                "over the seeds: the share that succeeded, the number of different ways that they took, and the entropy of "
                "these ways in bits (0 if the way is always the same, 1 for two ways taken equally often, 2 for four; with "
                f"few episodes it is a little too small). Last {LAST}: the mean entropy of the last {LAST} evaluations."
            )
            columns = ["task", "algorithm", "actions", "success", "ways", "entropy", f"last {LAST}", "entropy by seed"]
            yield _table(columns, rows)

    def _instruments(self) -> Iterable[str]:
        measured = self.results.diagnosed
        if not measured:
            return
        quantities = [name for name in QUANTITIES if any(len(each.measured(name)[0]) for each in measured)]
        yield "## Instruments"
        yield (
            "What `DiagnosticsCallback` measures in the runs. Its docstring explains each quantity; some are not defined for "
            "every algorithm. In the figure, thin: the single runs, thick: their mean. The last measurement:"
        )
        rows = []
        for each in measured:
            lasts = (each.measured(name)[1][-1:] for name in quantities)
            cells = [f"{last[0]:.3g}" if len(last) else "" for last in lasts]
            rows.append([self._link(each.run.name, each), *cells])
        names = [name.replace("_", " ") for name in quantities]
        yield _table(["run", *names], rows)
        both_gradients = ("constraint_gradient_norm", "q_gradient_norm")
        medians: list[tuple[str, str | None]] = [(name, None) for name in quantities]
        if set(both_gradients) <= set(quantities):
            medians.append(both_gradients)
            names.append("constraint's gradient norm / Q's")
        rows = []
        for env, label, runs in self.results.groups(measured):
            columns = ([each.settled(*of) for each in runs] for of in medians)
            rows.append([env, label, *(_range(column) for column in columns), self._seeds(runs)])
        yield "Medians over the second half of each run, from the lowest to the highest of the seeds:"
        yield _table(["task", "algorithm", *names, "seeds"], rows)
        yield self._image("Instruments", self.figures.instruments(self.results, quantities))

    def _protocol(self) -> Iterable[str]:
        evaluation = self.study.evaluation
        yield (
            f"Every {evaluation.every:,} steps {evaluation.episodes} episodes are played in each mode, in separate "
            "environments and with separate random numbers. The first states are the same at each evaluation of a run. "
            "rl_zoo3's ExperimentManager makes the runs, on one thread each. Hyperparameters that are not left at the "
            "constructor's defaults:"
        )
        rows = []
        for env in self.study.environments:
            for label in self.labels:
                if finished := self.results.of(env, label):
                    arguments = {
                        key: value for key, value in finished[0].record["hyperparameters"].items() if key != "n_timesteps"
                    }
                    rows.append([env, label, _arguments(arguments), self._seeds(finished)])
        yield _table(["task", "algorithm", "hyperparameters", "seeds"], rows)
        yield "The constructors' defaults, which these override:"
        firsts = {each.run.label: each.record for each in reversed(self.results.finished)}
        yield _table(
            ["algorithm", "defaults"],
            [[label, _arguments(firsts[label]["defaults"])] for label in self.labels if label in firsts],
        )
        yield (
            "Time of all finished runs in the tables above, without evaluations. The machine may have done other work, which "
            "processor time does not include. Updates a second are per second of processor time, environment included."
        )
        rows = []
        for label in self.labels:
            if records := [each.record for each in self.results.finished if each.run.label == label]:
                wall, cpu, updates = (
                    sum(record[key] for record in records) for key in ("seconds", "cpu_seconds", "n_updates")
                )
                resumed = sum(len(record["resumed_at"]) for record in records)
                rows.append(
                    [label, str(len(records)), f"{wall / 3600:.2f}", f"{cpu / 3600:.2f}", f"{updates / cpu:.0f}", str(resumed)]
                )
        yield _table(["algorithm", "runs", "hours", "processor hours", "updates a second", "times resumed"], rows)
        yield self._provenance()

    def _provenance(self) -> str:
        records = [each.record for each in self.results.finished]
        facts = {
            "processors": {record["processor"] for record in records},
            "commits": {commit for record in records for commit in record["commits"]},
            "commands": {f"`{record['command']}`" for record in records},
            "versions": {", ".join(f"{name} {number}" for name, number in record["versions"].items()) for record in records},
            "last run finished": {max(record["finished"] for record in records)},
        }
        lines = [f"- {name}: {'; '.join(sorted(values))}" for name, values in facts.items()]
        return "Where the runs come from (each run's file has its own entries):\n\n" + "\n".join(lines)

    # ------------------------------------------------------------------------------------------------------------ helpers

    def _milestones(self, steps: np.ndarray) -> list[int]:
        """Find the indices of the evaluations that are nearest to the milestones."""
        return sorted({int(np.abs(steps - share * self.study.steps).argmin()) for share in MILESTONES})

    def _seeds(self, finished: Iterable[Finished]) -> str:
        return ", ".join(self._link(str(each.run.seed), each) for each in finished)

    def _link(self, text: str, finished: Finished) -> str:
        return f"[{text}]({Path(os.path.relpath(finished.path, self.folder)).as_posix()})"

    def _image(self, description: str, path: Path) -> str:
        return f"![{description}]({path.relative_to(self.folder).as_posix()})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}"


def _range(values: Sequence[float]) -> str:
    """Format the range of the finite values."""
    finite = [value for value in values if np.isfinite(value)]
    ends = dict.fromkeys(f"{end:.3g}" for end in (min(finite), max(finite))) if finite else {}
    return " to ".join(ends)


def _arguments(arguments: Mapping[str, Any]) -> str:
    return f"`{', '.join(f'{key}={value}' for key, value in arguments.items())}`"


def _cell(estimate: Estimate, index: int, block: Block, *labels: str) -> str:
    """Format a number with its interval, or without it if an algorithm has only one run."""
    value, low, high = estimate[index]
    if any(len(block.seeds[label]) == 1 for label in labels):
        return f"{value:.2f}"
    return f"{value:.2f} ({low:.2f} to {high:.2f})"


def _table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
