"""
What a study takes, from measured updates a second.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import median

from .records import ROOT
from .study import Study, StudyError

#: Measured by benchmarks/bench_update.py.
MEASURED = ROOT / "benchmarks" / "results" / "speed" / "bench_update.json"
#: The benchmark's networks that are the paper's, and its names of the algorithms; FlowRL's default compiles in long runs.
ARCHITECTURE, THREADS = "paper", 1
CONTENDERS = {"flowrl": "FlowRL float32 compiled", "sac": "SAC", "td3": "TD3", "tqc": "TQC", "crossq": "CrossQ"}

GPU = """On GPUs it is unmeasured: nobody has run these updates on one here. With a rate measured there (`--rate`), GPU hours =
updates / rate / 3600 × the share of a GPU that a run gets (`--gpus-per-run`), where the rate is that of one run among as many
as share the GPU."""


def measured_rates(path: Path = MEASURED) -> dict[str, float]:
    """
    :param path: what ``benchmarks/bench_update.py`` wrote
    :return: median updates a second of rl_zoo3's algorithms, with the paper's networks and one thread
    :raises StudyError: if the file has no such numbers
    """
    for result in json.loads(path.read_text(encoding="utf-8"))["results"]:
        if (result["architecture"], result["threads"]) == (ARCHITECTURE, THREADS):
            rates = result["updates_per_second"]
            return {algo: median(rates[contender]) for algo, contender in CONTENDERS.items() if contender in rates}
    raise StudyError(f"{path} has no rates of the {ARCHITECTURE!r} networks with {THREADS} thread; give yours with --rate.")


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
    evaluation = study.evaluation
    assumptions = (
        f"Rates: {origin}. Processor hours = updates / rate / 3600, with one update a step. The environments' own time and "
        f"the evaluations ({evaluation.episodes} episodes every {evaluation.every:,} steps) come on top, and aren't in it."
    )
    return "\n".join([*lines, "", assumptions, "", GPU])
