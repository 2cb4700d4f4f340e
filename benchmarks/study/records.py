"""
The files that runs leave behind, and where they are.

``<results>/<study>/runs/<run>.json`` is the record of a finished run, and ``<results>/<study>/failures/<run>.txt`` the
traceback of one that failed. Both are small, and kept in git. What is needed only while it runs is under
``<work>/<study>/<run>/``.
"""

import json
import platform
import subprocess
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

    def record(self, study: str, run: Run) -> Path:
        """The file of a finished run."""
        return self.results / study / "runs" / f"{run.name}.json"

    def failure(self, study: str, run: Run) -> Path:
        """The traceback of a run that failed."""
        return self.results / study / "failures" / f"{run.name}.txt"

    def scratch(self, study: str, run: Run) -> Path:
        """Where a run keeps its checkpoints."""
        return self.work / study / run.name


def find_record(study: Study, run: Run, folders: Folders) -> Path | None:
    """
    Find what is left of a run, in the study's own folder or in those of the studies that it includes.

    :param study: the study
    :param run: one of its runs
    :param folders: where files are
    :return: the run's file, or None if it has not been finished
    :raises StudyError: if there is a file of the study's own, but of a run with other settings
    """
    own = folders.record(study.name, run)
    if own.exists():
        if differences := _compare(json.loads(own.read_text())["run"], run):
            raise StudyError(
                f"{own} is of another run than the study asks for: {'; '.join(differences)}. "
                "Delete it to run it again, or give the study another name."
            )
        return own
    for other in study.includes:
        path = folders.record(other, run)
        if path.exists() and not _compare(json.loads(path.read_text())["run"], run):
            return path
    return None


def _compare(recorded: dict[str, Any], run: Run) -> list[str]:
    return [
        f"{key} was {recorded.get(key)!r}, and is {asked!r} in the study"
        for key, asked in run.specification().items()
        if recorded.get(key) != asked
    ]


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
