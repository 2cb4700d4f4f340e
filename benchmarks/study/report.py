"""
The report of a study: one Markdown page and one HTML page, made from the finished runs' files alone.

``<results>/<study>/`` then holds ``report.md``, ``report.html`` and ``figures/``, beside the study file and the runs. What
someone has found in them goes into ``findings.md`` there, by hand, and is part of the pages.
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
from .page import to_html
from .records import Folders, differences, name_policy_arguments, write_atomically
from .results import Finished, Results, collect
from .study import DETERMINISTIC_ALGOS, Study
from .zoo_plots import learning_curves

#: How many of the last evaluations are taken together, to see whether it matters that one alone counts.
LAST = 5
#: Shares of the steps at which the tables tell of the way to the end.
MILESTONES = (0.1, 0.25, 0.5, 0.75, 1.0)
FINDINGS = "findings.md"
#: What the instruments measure, in the order of the tables and figures.
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
    :param study: the study
    :param folders: where files are
    :return: the pages
    :raises StudyError: if there are results of other runs in the place of the study's
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
    Makes the Markdown page, and draws its figures.

    :param results: the study's results
    :param folder: where the page will be
    """

    def __init__(self, results: Results, folder: Path):
        self.results, self.study, self.folder = results, results.study, folder
        self.labels = list(self.study.algorithms)
        self.figures = Figures(folder / "figures", self.labels)

    def text(self) -> str:
        """
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
        Runs that differ in more than the seed from the first of their task and label, or, in what the study does not ask for,
        from the task's first of their algorithm, under whatever label.
        """
        for env in self.study.environments:
            firsts: dict[str, Finished] = {}
            for label in self.labels:
                for each in (finished := self.results.of(env, label)):
                    first = firsts.setdefault(each.run.algo, each)
                    if found := differences(finished[0].record, each.record):
                        yield f"- {self._link(each.run.name, each)}, beside seed {finished[0].run.seed}: {'; '.join(found)}"
                    asked = {name for one in (first, each) for name in name_policy_arguments(one.run.hyperparameters)}
                    if each is finished[0] and (found := differences(first.record, each.record, asked)):
                        yield f"- {self._link(each.run.name, each)}, beside {first.run.name}, unasked: {'; '.join(found)}"

    def _findings(self) -> str:
        path = self.folder / FINDINGS
        return path.read_text(encoding="utf-8").strip() if path.exists() else ""

    def _why_no_statistics(self) -> str:
        return (
            "Nothing can be averaged over tasks yet: there is no task that every algorithm has finished, with one seed on all "
            "such tasks, and on which a baseline does better than random actions."
        )

    def _over_all_tasks(self, statistics: Statistics) -> Iterable[str]:
        block = statistics.block
        yield (
            "A **score** is 0 for uniformly random actions and 1 for the best baseline's mean return at the end of its runs "
            "on the same task: (return − random) / (best baseline − random). Baselines: "
            f"{', '.join(self.study.baselines)}. Random and best, tabled below, are taken as known: their own uncertainty is "
            "in no interval."
        )
        yield self._runs_used(block)
        yield (
            f"Scores at {self.study.steps:,} steps, deterministic evaluation, with {CONFIDENCE:.0%} intervals by stratified "
            f"bootstrap over runs ({REPLICATIONS:,} resamplings, rliable):"
        )
        yield self._aggregates_table(statistics.aggregates, block)
        yield "IQM: of all runs' scores, the mean of the middle half. Mean: of all. Median: of the tasks' mean scores."
        yield self._image("Aggregate scores with intervals", self.figures.aggregates(statistics))
        yield from self._of_more_evaluations()
        if statistics.leaving_out:
            yield "Does it hang on one task? IQM at the last evaluation, without:"
            rows = [[label, *(f"{value:.2f}" for value in values)] for label, values in statistics.leaving_out.items()]
            yield _table(["algorithm", *block.envs], rows)
        yield "IQM of the scores on the way, with intervals:"
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
                "Probability that a run of the first ends higher than one of the second, averaged over the tasks, and by how "
                "much the first one's IQM is above the second's, with intervals:"
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
        """The aggregates of the last evaluations together."""
        if len(self.results.finished[0].steps) < 2 * LAST:
            return
        results = replace(self.results, last=LAST)
        block = choose_block(results)
        if block is None:  # on no task is a baseline's mean of them better than random actions
            return
        yield (
            f"Policies swing from one evaluation to the next, of which these intervals know nothing. The same from the mean "
            f"of each run's last {LAST} evaluations, with the best baseline's mean of as many as score 1:"
        )
        yield self._aggregates_table(aggregate(final_scores(results, block)), block)

    def _runs_used(self, block: Block) -> str:
        used = "; ".join(f"{label}: {', '.join(map(str, seeds))}" for label, seeds in block.seeds.items())
        text = (
            f"Averaged over {', '.join(block.envs)}, with the runs of these seeds, whose files the next section names: {used}."
        )
        if left_out := [env for env in self.study.environments if env not in block.envs]:
            text += (
                f" Left out, as not every algorithm has finished a run there, or no baseline beats random actions: "
                f"{', '.join(left_out)}."
            )
        smallest = min(len(seeds) for seeds in block.seeds.values())
        if smallest * len(block.envs) < 4:
            text += " Of fewer than four scores, the IQM leaves none out: it is their mean."
        if smallest == 1:
            text += " **One run of an algorithm is no sample: it has no interval, and nothing follows from its rank.**"
        elif smallest < 10:
            text += f" With {smallest} runs a task, intervals by resampling are rather too narrow than too wide."
        return text

    def _task_by_task(self) -> Iterable[str]:
        yield (
            "Mean return of the last evaluation's episodes, deterministic; each number of a seed leads to its run's file. The "
            "interval is the mean's, by bootstrap over the seeds; of three seeds or two it is no more than their range. The "
            f"ratio is to the best baseline's mean. Last {LAST}: the mean of as many evaluations. Swing: the standard "
            "deviation of these around their mean in a run, averaged over the runs."
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
                "Random actions were evaluated before each run of the task, of whatever algorithm; this is the mean of all "
                "that the table above names for it."
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
            "Thick: mean over the seeds, and its standard error as rl_zoo3's plots compute it (the seeds' own standard "
            "deviation over √n, for three seeds 0.82 of the estimate for all seeds). Thin: the single runs. "
            "Mean returns on the way (deterministic):"
        )
        yield self._way_table()
        yield from self._at_equal_processor_time()

    def _ratios(self) -> Iterable[str]:
        """How an algorithm compares with the best baseline of each task, over the tasks."""
        columns = ["mean ratio", "least", "tasks above 1"]
        rows = []
        for label in self.labels:
            cells = []
            for results in (self.results, replace(self.results, last=LAST)):
                found = {env: results.ratio(env, label) for env in self.study.environments}
                ratios = {env: ratio for env, ratio in found.items() if ratio is not None}
                if ratios:
                    least = min(ratios, key=lambda env: ratios[env])
                    n_ahead = sum(ratio > 1 for ratio in ratios.values())
                    mean = f"{sum(ratios.values()) / len(ratios):.2f}"
                    cells += [mean, f"{ratios[least]:.2f}, {least}", f"{n_ahead} of {len(ratios)}"]
            if cells:
                rows.append([label, *cells])
        if rows and all(len(row) == 1 + 2 * len(columns) for row in rows):
            yield "These ratios over the tasks, of the last evaluation and of the mean of the last five:"
            yield _table(["algorithm", *columns, *(f"last {LAST}: {column}" for column in columns)], rows)

    def _at_equal_processor_time(self) -> Iterable[str]:
        """What the algorithms reach in the processor time that the fastest takes for all its steps."""
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
                "Mean return when each has had the processor minutes of the fastest (evaluations aside; on straight lines "
                "between them). These minutes hang on the machine, on what else it did, and on the precision asked for:"
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

    def _way_table(self) -> str:
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
            yield (
                "The same policies, evaluated with `deterministic=True` (for FlowRL the flow from a0 = 0, for SAC and TQC the "
                "mean of the distribution) and with actions drawn from the policy: mean return of the last evaluation."
            )
            yield _table(["run", "deterministic", "stochastic"], rows)
            yield "The first less the second, mean over the seeds:"
            yield _table(["task", "algorithm", "deterministic less stochastic", "seeds"], gaps)
        if plain := [label for label in self.labels if self.study.algorithms[label].algo in DETERMINISTIC_ALGOS]:
            yield f"The policies of {', '.join(plain)} draw no actions."

    def _coverage(self) -> Iterable[str]:
        """How evenly the policies take equally good ways, on the tasks that have some."""
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
                "Some tasks can be solved in several ways that pay the same. Of the last evaluation's episodes, mean over the "
                "seeds: the share that succeeded, the number of different ways that they took, and the entropy of these ways "
                "in bits (0 if it is always the same way, 1 for two ways taken equally often, 2 for four; few episodes make "
                f"it a little too small). Last {LAST}: the mean entropy of as many evaluations."
            )
            columns = ["task", "algorithm", "actions", "success", "ways", "entropy", f"last {LAST}", "entropy by seed"]
            yield _table(columns, rows)

    def _instruments(self) -> Iterable[str]:
        measured = self.results.measured
        if not measured:
            return
        quantities = [name for name in QUANTITIES if any(len(each.measured(name)[0]) for each in measured)]
        yield "## Instruments"
        yield (
            "What `DiagnosticsCallback` measures in the runs (see its docstring for each quantity; what has no line is not "
            "defined for the algorithm). Thin: the single runs. Thick: their mean. The last measurement:"
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
        yield "Medians over the second half of each run, from the least of the seeds to the greatest:"
        yield _table(["task", "algorithm", *names, "seeds"], rows)
        yield self._image("Instruments", self.figures.instruments(self.results, quantities))

    def _protocol(self) -> Iterable[str]:
        evaluation = self.study.evaluation
        yield (
            f"Every {evaluation.every:,} steps {evaluation.episodes} episodes are played in each mode, in environments and "
            "with random numbers of their own; the first states are the same at each evaluation of a run. Runs are made by "
            "rl_zoo3's ExperimentManager on one thread each. Hyperparameters, where not left to the constructor:"
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
        yield "The constructors' defaults, over which these went:"
        firsts = {each.run.label: each.record for each in reversed(self.results.finished)}
        yield _table(
            ["algorithm", "defaults"],
            [[label, _arguments(firsts[label]["defaults"])] for label in self.labels if label in firsts],
        )
        yield (
            "Time of all finished runs, which the tables above name, evaluations aside, on a machine that may do other things "
            "besides. Processor time leaves out what others took; the updates a second are of processor time, environment "
            "included."
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
        return "Each run's file holds its own of these:\n\n" + "\n".join(lines)

    # ------------------------------------------------------------------------------------------------------------ helpers

    def _milestones(self, steps: np.ndarray) -> list[int]:
        """Indices of the evaluations that are nearest to the milestones."""
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
    """From the least to the greatest, of those that are numbers."""
    finite = [value for value in values if np.isfinite(value)]
    ends = dict.fromkeys(f"{end:.3g}" for end in (min(finite), max(finite))) if finite else {}
    return " to ".join(ends)


def _arguments(arguments: Mapping[str, Any]) -> str:
    return f"`{', '.join(f'{key}={value}' for key, value in arguments.items())}`"


def _cell(estimate: Estimate, index: int, block: Block, *labels: str) -> str:
    """A number with its interval, if it has one: where one run stands for an algorithm it has none."""
    value, low, high = estimate[index]
    if any(len(block.seeds[label]) == 1 for label in labels):
        return f"{value:.2f}"
    return f"{value:.2f} ({low:.2f} to {high:.2f})"


def _table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
