"""
Estimate the computing time of a study from measured updates a second.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import median

from .records import ROOT
from .study import Study, StudyError

#: Measured by ``benchmarks/bench_update.py --architectures table1`` (called "defaults" at the time), at the dimensions of
#: HalfCheetah and of the dog.
MEASURED = [ROOT / "benchmarks" / "results" / "speed" / f"bench_update_defaults_{sizes}.json" for sizes in ("17x6", "223x38")]
#: The benchmark's names of the algorithms. FlowRL compiles by default in long runs.
CONTENDERS = {"flowrl": "FlowRL float32 compiled", "sac": "SAC", "td3": "TD3", "tqc": "TQC", "crossq": "CrossQ"}

#: Environment steps a second on an H100, compiled and with CUDA graphs, from LeanRL's README (not measured here).
LEANRL = {"sac": 725.0, "td3": 936.0}
GPU = """\
GPU hours: updates / rate / 3600 × the share of a GPU that a run gets (`--gpus-per-run`), where the rate is that of one run
while as many runs as fit share the GPU. Nobody has measured FlowRL's: measure it there, and `--rate` gives the hours. Until
then this is a rough estimate for one run on an H100 at a time: SAC and TD3 at the steps a second that LeanRL reports for its
own versions, whose networks may differ; the others slower than SAC by the same factor as on the processor above."""


def measured_rates(path: Path) -> tuple[dict[str, float], str]:
    """
    Read measured updates a second.

    :param path: a file that ``benchmarks/bench_update.py`` wrote
    :return: median updates a second by rl_zoo3's names, and a sentence that says where they come from
    """
    contents = json.loads(path.read_text(encoding="utf-8"))
    [result] = contents["results"]
    rates = {
        algo: median(result["updates_per_second"][contender])
        for algo, contender in CONTENDERS.items()
        if contender in result["updates_per_second"]
    }
    options = contents["options"]
    origin = (
        f"medians of {path.relative_to(ROOT)}: FlowRL with the paper's equations, networks of its Table 1 for all, "
        f"batch {options['batch_size']}, observations {options['obs_dim']}, actions {options['action_dim']}, "
        f"one thread of {contents['processor']['name']}"
    )
    return rates, origin


def estimate_cost(study: Study, rates: Mapping[str, float], origin: str, unit: str = "processor") -> str:
    """
    Make a table of the hours that a study needs.

    :param study: the study
    :param rates: updates a second of one run, by the algorithms' labels or rl_zoo3's names
    :param origin: where the rates come from
    :param unit: "processor" or "GPU", what the hours are hours of
    :return: the table in Markdown, below a line that says where the rates come from
    :raises StudyError: if an algorithm has no rate
    """
    lines = [f"| algorithm | runs | updates | updates a second | {unit} hours |", "|---|---|---|---|---|"]
    total = 0.0
    for label, algorithm in study.algorithms.items():
        rate = rates.get(label, rates.get(algorithm.algo))
        if rate is None:
            raise StudyError(f"There is no rate of {label!r}; measure it, and give it with --rate {label}=UPDATES_A_SECOND.")
        n_runs = sum(run.label == label for run in study.runs())
        hours = n_runs * study.steps / rate / 3600
        total += hours
        lines.append(f"| {label} | {n_runs} | {n_runs * study.steps:,} | {rate:.1f} | {hours:,.0f} |")
    machine = "core" if unit == "processor" else unit
    lines.append(f"| all | {len(study.runs())} | | | {total:,.0f} ({total / 24:,.0f} days of one {machine}) |")
    return "\n".join([f"Rates: {origin}.", "", *lines])


def guess_gpu_rates(study: Study, rates: Mapping[str, float]) -> dict[str, float]:
    """
    Guess how fast the algorithms are on an H100.

    :param study: the study
    :param rates: updates a second on a processor, by rl_zoo3's names
    :return: steps a second by rl_zoo3's names: LeanRL's figure where it reports one, otherwise in proportion to SAC's
    :raises StudyError: if an algorithm has no rate
    """
    algos = {algorithm.algo for algorithm in study.algorithms.values()} - LEANRL.keys()
    if unknown := sorted(algos - rates.keys()):
        raise StudyError(f"There is no rate of {', '.join(unknown)}; measure it, and give it with --rate.")
    return LEANRL | {algo: LEANRL["sac"] * rates[algo] / rates["sac"] for algo in algos}


def describe_cost(study: Study, rates: Mapping[str, float]) -> str:
    """
    Describe the computing time of a study.

    :param study: the study
    :param rates: updates a second, see :func:`estimate_cost`; if empty, the measured ones are used
    :return: a page in Markdown
    :raises StudyError: if an algorithm has no rate
    """
    sources = [measured_rates(path) for path in MEASURED]
    if rates:
        given = ", ".join(f"{label} as given" for label in rates)
        sources = [({**measured, **rates}, f"{origin}; {given}") for measured, origin in sources]
    evaluation = study.evaluation
    assumptions = (
        "Processor hours = updates / rate / 3600, with one update a step, as if all tasks had these dimensions. The "
        "environments' own time and the evaluations "
        f"({evaluation.episodes} episodes every {evaluation.every:,} steps) come on top and are not included."
    )
    tables = [estimate_cost(study, rates_there, origin) for rates_there, origin in sources]
    parts = [f"# Computing time of the study `{study.name}`", assumptions, *tables]
    if not rates:
        parts += [
            GPU,
            estimate_cost(study, guess_gpu_rates(study, sources[0][0]), "LeanRL's, and estimates as above", "GPU"),
        ]
    return "\n\n".join(parts)
