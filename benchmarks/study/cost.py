"""
What a study takes, from measured updates a second.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import median

from .records import ROOT
from .study import Study, StudyError

#: Measured by ``benchmarks/bench_update.py --architectures defaults``: at HalfCheetah's dimensions, and at the dog's.
MEASURED = [ROOT / "benchmarks" / "results" / "speed" / f"bench_update_defaults_{sizes}.json" for sizes in ("17x6", "223x38")]
#: The benchmark's names of the algorithms; FlowRL's default compiles in long runs.
CONTENDERS = {"flowrl": "FlowRL float32 compiled", "sac": "SAC", "td3": "TD3", "tqc": "TQC", "crossq": "CrossQ"}

#: Environment steps a second of SAC on an H100, compiled and with CUDA graphs, by LeanRL's README (not measured here).
LEANRL_SAC = 725
GPU = """\
GPU hours: updates / rate / 3600 × the share of a GPU that a run gets (`--gpus-per-run`), where the rate is that of one run
among as many as share the GPU. **Nobody has measured FlowRL's, so there is no estimate of the study's GPU hours here**:
measure it there, and `--rate` gives them. For scale alone: at the {rate} steps a second that LeanRL reports of its own SAC,
one on an H100, a run takes {hours:.2f} GPU hours, and {n_runs} take {all_hours:.0f}. FlowRL's updates do more than SAC's, and
those of wider networks more than theirs."""


def measured_rates(path: Path) -> tuple[dict[str, float], str]:
    """
    :param path: what ``benchmarks/bench_update.py`` wrote
    :return: median updates a second of rl_zoo3's algorithms, and where they come from
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
        f"medians of {path.relative_to(ROOT)}: networks of FlowRL's default `net_arch` for all, "
        f"batch {options['batch_size']}, observations {options['obs_dim']}, actions {options['action_dim']}, "
        f"one thread of {contents['processor']['name']}"
    )
    return rates, origin


def estimate_cost(study: Study, rates: Mapping[str, float], origin: str) -> str:
    """
    :param study: the study
    :param rates: updates a second of one run, by the algorithms' labels or rl_zoo3's names
    :param origin: where the rates come from
    :return: a table in Markdown, and how it was made
    :raises StudyError: if an algorithm has no rate
    """
    lines = ["| algorithm | runs | updates | updates a second | processor hours |", "|---|---|---|---|---|"]
    total = 0.0
    for label, algorithm in study.algorithms.items():
        rate = rates.get(label, rates.get(algorithm.algo))
        if rate is None:
            raise StudyError(f"There is no rate of {label!r}; measure it, and give it with --rate {label}=UPDATES_A_SECOND.")
        n_runs = len(study.environments) * len(study.seeds)
        hours = n_runs * study.steps / rate / 3600
        total += hours
        lines.append(f"| {label} | {n_runs} | {n_runs * study.steps:,} | {rate:.1f} | {hours:,.0f} |")
    lines.append(f"| all | {len(study.runs())} | | | {total:,.0f} ({total / 24:,.0f} days of one core) |")
    return "\n".join([f"Rates: {origin}.", "", *lines])


def describe_cost(study: Study, rates: Mapping[str, float]) -> str:
    """
    :param study: the study
    :param rates: updates a second, see :func:`estimate_cost`; where there are none, those that were measured
    :return: a page in Markdown
    :raises StudyError: if an algorithm has no rate
    """
    sources = [(rates, "as given")] if rates else [measured_rates(path) for path in MEASURED]
    evaluation = study.evaluation
    assumptions = (
        "Processor hours = updates / rate / 3600, with one update a step, as if all tasks had these dimensions. The "
        "environments' own time and the evaluations "
        f"({evaluation.episodes} episodes every {evaluation.every:,} steps) come on top, and aren't in it."
    )
    hours, n_runs = study.steps / LEANRL_SAC / 3600, len(study.runs())
    gpu = GPU.format(rate=LEANRL_SAC, hours=hours, n_runs=n_runs, all_hours=n_runs * hours)
    tables = [estimate_cost(study, found, origin) for found, origin in sources]
    return "\n\n".join([f"# What the study `{study.name}` takes", assumptions, *tables, gpu])
