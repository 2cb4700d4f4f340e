"""
The files that runs leave behind, and where they are.

``<results>/<study>/runs/<run>.json`` is the record of a finished run, and ``<results>/<study>/failures/<run>.txt`` the
traceback of one that failed. Both are small, and kept in git. What is needed only while it runs is under
``<work>/<study>/<run>/``.
"""

import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sb3_flowrl import safe

from .study import Run, Study, StudyError

ROOT = Path(__file__).parent.parent.parent
RESULTS = ROOT / "docs" / "results"
WORK = ROOT / "runs" / "study"
PACKAGES = ("sb3-flowrl", "stable-baselines3", "sb3-contrib", "rl_zoo3", "torch", "gymnasium", "mujoco", "dm_control", "numpy")

#: Arguments that older records don't hold, as there were none: with these values a model does what it did then.
ADDED_SINCE = {"spread_coef": 0.0, "target_spread": 0.16, "policy_kwargs.batch_norm": False}

#: What is known of a finished run, see ``run.py``.
Record = dict[str, Any]


@dataclass(frozen=True)
class Folders:
    """
    Where a study's files are.

    :param results: of all studies, what is kept
    :param work: of all studies, what is needed while they run
    """

    results: Path = RESULTS
    work: Path = WORK

    def study(self, study: str) -> Path:
        """The study file, as it was when its runs were made."""
        return self.results / study / f"{study}.yml"

    def record(self, study: str, run: Run) -> Path:
        """The file of a finished run."""
        return self.results / study / "runs" / f"{run.name}.json"

    def failure(self, study: str, run: Run) -> Path:
        """The traceback of a run that failed."""
        return self.results / study / "failures" / f"{run.name}.txt"

    def scratch(self, study: str, run: Run) -> Path:
        """Where a run keeps its checkpoints."""
        return self.work / study / run.name


def find_record(study: Study, run: Run, folders: Folders, arguments: Record | None = None) -> Path | None:
    """
    Find what is left of a run, in the study's own folder or in those of the studies that it includes.

    :param study: the study
    :param run: one of its runs
    :param folders: where files are
    :param arguments: what the run would be made with now; None where no run will be put beside those that are found
    :return: the run's file, or None if it has not been finished
    :raises StudyError: if there is a file of the study's own, but of a run with other settings
    """

    def compare(path: Path) -> list[str]:
        record = json.loads(path.read_text(encoding="utf-8"))
        asked = [
            f"{key} was {record['run'].get(key)!r}, and is {value!r} in the study"
            for key, value in run.specification().items()
            if record["run"].get(key) != value
        ]
        return asked or (differences(record, arguments) if arguments is not None else [])

    own = folders.record(study.name, run)
    if own.exists():
        if found := compare(own):
            raise StudyError(
                f"{own} is of another run than would be made now: {'; '.join(found)}. "
                "Delete it to run it again, or give the study another name."
            )
        return own
    return next(
        (path for other in study.includes if (path := folders.record(other, run)).exists() and not compare(path)), None
    )


def differences(
    recorded: Mapping[str, Any], now: Mapping[str, Any], parts: Sequence[str] = ("hyperparameters", "defaults")
) -> list[str]:
    """
    :param recorded: a run's record, or what ``arguments.py`` makes
    :param now: the same of another run
    :param parts: of which arguments
    :return: the arguments in which they differ, each with both values
    """
    found = []
    for part in parts:
        added = ADDED_SINCE if part == "defaults" else {}
        names = recorded[part].keys() | now[part].keys()
        for name in sorted(names - {"n_timesteps"}):  # of rl_zoo3's files, over which the study's steps go
            before, after = (each[part].get(name, added.get(name)) for each in (recorded, now))
            if before != after:
                found.append(f"{name} was {before!r} and is {after!r}")
    return found


def write_atomically(path: Path, text: str) -> None:
    """
    Write a file that is, whenever the process dies, the old one or the new one.

    :param path: the file; its folder is made if need be
    :param text: its contents
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    safe.write_atomically(path, text.encode("utf-8"))


def to_json(record: Record) -> str:
    """
    :param record: plain data
    :return: JSON with one line for each evaluation, and one for each other entry
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
    :return: versions of the libraries and the name of the processor
    """
    return dict(
        versions={"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        processor=_processor(),
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def current_commit() -> str:
    """
    :return: the commit of this checkout, with "-dirty" where files differ from it
    """
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown, as this is no git checkout"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
