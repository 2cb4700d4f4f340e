"""
Read, write and compare the files that runs leave behind.

``<results>/<study>/runs/<run>.json`` is the record of a finished run, and ``<results>/<study>/failures/<run>.txt`` is the
traceback of a failed one. Both are small and kept in git. Files that a run needs only while it runs are in
``<work>/<study>/<run>/``.
"""

import json
import platform
import subprocess
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rl_zoo3 import exp_manager

from sb3_flowrl.export import safe_policy as safe
from sb3_flowrl.legacy import FORMER_NET_ARCH, FORMER_POLICY_DEFAULTS
from sb3_flowrl.policies import POLICY_DEFAULTS

from .study import Run, Study, StudyError

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "studies" / "results"
WORK = ROOT / "runs" / "study"
PACKAGES = ("sb3-flowrl", "stable-baselines3", "sb3-contrib", "rl_zoo3", "torch", "gymnasium", "mujoco", "dm_control", "numpy")

#: Arguments that did not exist when older records were made. With these values a model behaves as it did then.
ADDED_SINCE: dict[str, Any] = {
    "spread_coef": 0.0,
    "target_spread": 0.16,
    "policy_kwargs.batch_norm": False,
    "actor_tau": None,
    "policy_kwargs.average_actor": False,
    "delay_behavior": False,
    "use_sde": False,
}
#: FlowRL's arguments that were removed since the first study, and the values that meant what FlowRL does now.
REMOVED_SINCE: dict[str, Any] = {"float64_observations": False, "scale_rewards": False}

#: What is known about a finished run, see ``run.py``.
Record = dict[str, Any]


@dataclass(frozen=True)
class Folders:
    """
    The folders of all studies' files.

    :param results: what is kept
    :param work: what is needed only while the studies run
    """

    results: Path = RESULTS
    work: Path = WORK

    def study(self, study: str) -> Path:
        """Return the path of the study's definition as it was when its runs were made."""
        return self.results / study / f"{study}.yml"

    def record(self, study: str, run: Run) -> Path:
        """Return the path of a finished run's record."""
        return self.results / study / "runs" / f"{run.name}.json"

    def failure(self, study: str, run: Run) -> Path:
        """Return the path of a failed run's traceback."""
        return self.results / study / "failures" / f"{run.name}.txt"

    def scratch(self, study: str, run: Run) -> Path:
        """Return the folder of a run's checkpoints."""
        return self.work / study / run.name


def find_record(
    study: Study, run: Run, folders: Folders, resolve: Callable[[Run], Record], adds_runs: bool = False
) -> Path | None:
    """
    Find the record of a run in the study's own folder or in those of the studies that it includes.

    :param study: the study
    :param run: one of its runs
    :param folders: the folders of files
    :param resolve: returns the arguments that a run would be made with now
    :param adds_runs: whether more runs will be made beside those found. If so, a found run must have the arguments that it
        would be made with now. If not, it is enough for one of the study's own runs that the definition still asks for the
        same hyperparameters, even if a default has changed since
    :return: the record's path, or None if the run is not finished
    :raises StudyError: if the study's own folder holds a record of this name that was made with other settings
    """

    def compare(path: Path, adds_runs: bool) -> list[str]:
        record = json.loads(path.read_text(encoding="utf-8"))
        specification = run.specification()
        is_asked_for_so = record["run"].get("hyperparameters") == specification.pop("hyperparameters")
        other = [
            f"{key} was {record['run'].get(key)!r}, and is {value!r} in the study"
            for key, value in specification.items()
            if record["run"].get(key) != value
        ]
        if other or (is_asked_for_so and not adds_runs):
            return other
        return differences(record, resolve(run))

    own = folders.record(study.name, run)
    if own.exists():
        if changed := compare(own, adds_runs):
            raise StudyError(
                f"{own} is of another run than would be made now: {'; '.join(changed)}. "
                "Delete it to run it again, or give the study another name."
            )
        return own
    return next(
        (path for other in study.includes if (path := folders.record(other, run)).exists() and not compare(path, True)), None
    )


def differences(recorded: Mapping[str, Any], now: Mapping[str, Any], left_out: Collection[str] = ()) -> list[str]:
    """
    List the arguments in which two runs differ.

    :param recorded: a run's record, or what ``arguments.py`` makes
    :param now: the same for another run
    :param left_out: names of arguments that may differ
    :return: a sentence for each argument, with both values
    """
    before, after = effective_arguments(recorded), effective_arguments(now)
    return [
        f"{name} was {before.get(name)!r} and is {after.get(name)!r}"
        for name in sorted((before.keys() | after.keys()) - {*left_out})
        if before.get(name) != after.get(name)
    ]


def effective_arguments(record: Mapping[str, Any]) -> dict[str, Any]:
    """
    List the arguments that a model was made with, whether a definition, rl_zoo3's files or a default set them.

    :param record: a run's record, or what ``arguments.py`` makes
    :return: the arguments; those in ``policy_kwargs`` are named ``policy_kwargs.<name>``
    """
    defaults, hyperparameters = dict(record["defaults"]), dict(record["hyperparameters"])
    hyperparameters.pop("n_timesteps", None)  # from rl_zoo3's files; the study's steps override it
    if "w2_coef" in defaults:
        defaults = ADDED_SINCE | defaults
        former = FORMER_POLICY_DEFAULTS
        if defaults["policy_kwargs.batch_norm"] is None:
            former = POLICY_DEFAULTS if defaults["delay_behavior"] else {**POLICY_DEFAULTS, "net_arch": FORMER_NET_ARCH}
        defaults |= what_none_means(former)
    defaults.pop("policy_kwargs", None)
    effective = defaults | name_policy_arguments(hyperparameters)
    effective = {name: value for name, value in effective.items() if (name, value) not in REMOVED_SINCE.items()}
    if effective.get("precision") == "auto":  # float32 on every machine, computed by the library that is faster there
        effective["precision"] = "float32"
    return effective


def what_none_means(defaults: Mapping[str, Any]) -> Record:
    """
    List the values that FlowRL's policy uses for arguments that are None.

    :param defaults: the policy's defaults when the run was made
    :return: the values by their names in a record
    """
    return as_plain_data({f"policy_kwargs.{name}": value for name, value in defaults.items()})


def name_policy_arguments(hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """
    Replace ``policy_kwargs`` by one entry for each of its arguments.

    :param hyperparameters: of a run, as plain data
    :return: the hyperparameters; those in ``policy_kwargs`` are named ``policy_kwargs.<name>``
    """
    named = dict(hyperparameters)
    text = named.pop("policy_kwargs", None)
    # As rl_zoo3 reads it
    policy_kwargs = eval(text, vars(exp_manager)) if isinstance(text, str) else text or {}
    return named | {f"policy_kwargs.{name}": value for name, value in as_plain_data(policy_kwargs).items()}


def as_plain_data(values: Mapping[str, Any]) -> Record:
    """
    Convert values to plain data that JSON can hold.

    :param values: any values
    :return: numbers, texts and None as they are, everything else as text
    """
    return {
        name: value if isinstance(value, (bool, int, float, str, type(None))) else str(_sorted(value))
        for name, value in values.items()
    }


def _sorted(value: Any) -> Any:
    """Sort a dictionary by its keys, since their order makes no difference."""
    return dict(sorted(value.items())) if isinstance(value, dict) else value


def write_atomically(path: Path, text: str) -> None:
    """
    Write a file. If the process dies meanwhile, the file is either the old or the new one.

    :param path: the file; its folder is made if need be
    :param text: its contents
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    safe.write_atomically(path, text.encode("utf-8"))


def to_json(record: Record) -> str:
    """
    Convert a record to JSON.

    :param record: plain data
    :return: JSON with one line for each evaluation and one for each other entry
    """
    lines = []
    for key, value in record.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            entries = ",\n".join(f"  {json.dumps(entry)}" for entry in value)
            lines.append(f" {json.dumps(key)}: [\n{entries}\n ]")
        else:
            lines.append(f" {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def describe_machine() -> Record:
    """
    Describe the machine and the software.

    :return: versions of the libraries and the name of the processor
    """
    return dict(
        versions={"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        processor=_processor(),
    )


@cache
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def current_commit() -> str:
    """
    Find the commit of this checkout.

    :return: the commit, followed by "-dirty" if files differ from it
    """
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown (not a git checkout)"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def without_folders(arguments: Sequence[str]) -> list[str]:
    """
    Leave out of a command what is true of one machine only: the folders of its files.

    :param arguments: arguments of a command line
    :return: the arguments without the options ``--work`` and ``--results``
    """
    kept = []
    rest = iter(arguments)
    for argument in rest:
        name, _, value = argument.partition("=")
        if name not in ("--work", "--results"):
            kept.append(argument)
        elif not value:
            next(rest, None)  # the folder is an argument of its own
    return kept
