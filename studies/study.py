"""
Read and check the definition of a study: what is run, how often, for how long, and how it is evaluated.

For example::

    description: Is SAC better than TD3?
    environments: [HalfCheetah-v4, Hopper-v4]
    seeds: [0, 1, 2]
    steps: 100_000
    evaluation: {every: 5_000, episodes: 10}
    baselines: [sac, td3]                       # scores are relative to the best of these
    hyperparameters:                            # of all algorithms; they override those of rl_zoo3's files
      policy_kwargs: dict(net_arch=[256, 256])
    algorithms:
      sac:
      td3:
      sac-slow: {algo: sac, hyperparameters: {tau: 0.001}, seeds: [10, 11]}
    diagnose: true                              # run the instruments of sb3_flowrl.diagnostics, too

Hyperparameters are written as in rl_zoo3's files. What the study does not set has the value of those files for the algorithm
and the environment.
"""

import difflib
import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import gymnasium as gym
import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveInt, ValidationError, field_validator
from rl_zoo3.utils import ALGOS

from sb3_flowrl import zoo

zoo.register()

DEFINITIONS = Path(__file__).parent / "definitions"
NOT_EMPTY = Field(min_length=1)
#: Algorithms whose policies do not draw actions, so that one mode of evaluation is enough.
DETERMINISTIC_ALGOS = ("td3", "ddpg")
#: Modules by the names that older definitions have for them.
RENAMED_PACKAGES = {"benchmarks.study.worth": "studies.worth"}


class StudyError(ValueError):
    """
    A definition that can't be run, or results that don't belong to it.
    """


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def _no_duplicates(values: list) -> list:
    if duplicates := sorted({value for value in values if values.count(value) > 1}):
        raise ValueError(f"{', '.join(map(str, duplicates))} is there more than once")
    return values


def _current_names(packages: list[str]) -> list[str]:
    return [RENAMED_PACKAGES.get(package, package) for package in packages]


Seeds = Annotated[list[Annotated[int, Field(ge=0)]], NOT_EMPTY, AfterValidator(_no_duplicates)]
Names = Annotated[list[str], NOT_EMPTY, AfterValidator(_no_duplicates)]


class Evaluation(_Strict):
    """
    How the policies are evaluated.

    :param every: environment steps between evaluations
    :param episodes: episodes of each evaluation, in each mode
    """

    every: PositiveInt
    episodes: PositiveInt


class Algorithm(_Strict):
    """
    An algorithm with its hyperparameters.

    :param algo: rl_zoo3's name of it; default: its label in the definition
    :param hyperparameters: these override the study's and rl_zoo3's
    :param seeds: seeds of its runs; default: the study's
    """

    algo: str
    hyperparameters: dict[str, Any] = {}
    seeds: Seeds | None = None


@dataclass(frozen=True)
class Run:
    """
    Everything that determines the outcome of one run, except the versions of the libraries.

    :param label: the algorithm's label in the study
    :param algo: rl_zoo3's name of the algorithm
    :param env: id of the environment
    :param seed: of the run
    :param steps: environment steps of training
    :param evaluation: how it is evaluated
    :param hyperparameters: these override those of rl_zoo3's files
    :param gym_packages: modules that register environments or algorithms
    :param diagnose: whether the instruments of ``sb3_flowrl.diagnostics`` measure it; they do not change what it learns
    """

    label: str
    algo: str
    env: str
    seed: int
    steps: int
    evaluation: Evaluation
    hyperparameters: dict[str, Any]
    gym_packages: tuple[str, ...] = ()
    diagnose: bool = False

    @property
    def name(self) -> str:
        """Return the run's name, which is also that of its file."""
        return f"{self.env.replace('/', '-')}_{self.label}_seed{self.seed}"

    @property
    def modes(self) -> dict[str, bool]:
        """Return the modes of evaluation, and whether ``predict`` is deterministic in each."""
        deterministic = {"deterministic": True}
        return deterministic if self.algo in DETERMINISTIC_ALGOS else {**deterministic, "stochastic": False}

    def specification(self) -> dict[str, Any]:
        """
        Describe the run as plain data.

        :return: the data, to be stored and compared
        """
        specification = {**vars(self), "evaluation": self.evaluation.model_dump()}
        del specification["gym_packages"]  # the environment and the algorithm are known by their names
        del specification["diagnose"]  # has no influence on the outcome
        return specification


class Study(_Strict):
    """
    The contents of a definition.

    :param description: the question of the study, in a sentence or two
    :param algorithms: the algorithms by their labels
    :param environments: ids of environments
    :param seeds: seeds of the runs
    :param steps: environment steps of each run
    :param evaluation: how the policies are evaluated
    :param baselines: labels of algorithms; the best of them on each task has the score 1
    :param hyperparameters: of all algorithms; they override those of rl_zoo3's files
    :param gym_packages: modules to import because they register environments or algorithms
    :param diagnose: whether the instruments of ``sb3_flowrl.diagnostics`` measure each run at every evaluation
    :param comparisons: titles of figures, and the labels of the algorithms in each; default: one figure of all
    :param includes: names of studies whose runs are reused where this study asks for the same
    :param name: the file's name without its ending
    """

    description: str
    algorithms: Annotated[dict[Annotated[str, Field(pattern="^[a-z0-9.-]+$")], Algorithm], NOT_EMPTY]
    environments: Names
    seeds: Seeds
    steps: PositiveInt
    evaluation: Evaluation
    baselines: Names
    hyperparameters: dict[str, Any] = {}
    gym_packages: Annotated[list[str], AfterValidator(_current_names)] = []
    diagnose: bool = False
    comparisons: dict[str, list[str]] = {}
    includes: list[str] = []
    name: str = ""

    @field_validator("algorithms", mode="before")
    @classmethod
    def _take_labels_for_names(cls, algorithms: Any) -> Any:
        if not isinstance(algorithms, dict):
            return algorithms
        entries = {label: {} if entry is None else entry for label, entry in algorithms.items()}
        return {label: {"algo": label, **entry} if isinstance(entry, dict) else entry for label, entry in entries.items()}

    def runs(self) -> list[Run]:
        """
        List all runs.

        :return: the runs; those of the first seeds come first, so that early results cover all tasks and algorithms
        """
        seeds = {label: algorithm.seeds or self.seeds for label, algorithm in self.algorithms.items()}
        return [
            Run(
                label=label,
                algo=algorithm.algo,
                env=env,
                seed=seeds[label][index],
                steps=self.steps,
                evaluation=self.evaluation,
                hyperparameters={**self.hyperparameters, **algorithm.hyperparameters},
                gym_packages=tuple(self.gym_packages),
                diagnose=self.diagnose,
            )
            for index in range(max(map(len, seeds.values())))
            for env in self.environments
            for label, algorithm in self.algorithms.items()
            if index < len(seeds[label])
        ]


def find_study(name: str) -> Path:
    """
    Find the definition of a study.

    :param name: a file, or the name of one in ``definitions`` without its ending
    :return: the file
    :raises StudyError: if there is none
    """
    for path in (Path(name), DEFINITIONS / f"{name}.yml"):
        if path.is_file():
            return path
    known = sorted(path.stem for path in DEFINITIONS.glob("*.yml"))
    raise StudyError(f"There is no study {name!r}. Give a file, or one of {', '.join(known)}.")


def load_study(path: Path) -> Study:
    """
    Read and check the definition of a study.

    :param path: the file
    :return: the study
    :raises StudyError: if it can't be run as it is; the message names every fault
    """
    try:
        contents = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise StudyError(f"{path} is not YAML: {error}") from error
    if not isinstance(contents, dict):
        raise StudyError(f"{path} must hold keys such as 'algorithms' and 'environments', but is {contents!r}.")
    try:
        study = Study(**{**contents, "name": path.stem})
    except ValidationError as error:
        faults = [
            f"{'.'.join(map(str, fault['loc']))}: {fault['msg']} (it is {fault['input']!r})"
            for fault in error.errors(include_url=False)
        ]
        raise StudyError("\n  ".join([f"{path} is not a study that can be run:", *faults])) from error
    if faults := [*_find_faults(study), *_find_missing_studies(study, path.parent)]:
        raise StudyError("\n  ".join([f"{path} is not a study that can be run:", *faults]))
    return study


def _find_faults(study: Study) -> Iterable[str]:
    """Find the faults that the types do not reveal."""
    for package in study.gym_packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            yield f"gym_packages: {package} can't be imported ({error})"
    for label, algorithm in study.algorithms.items():
        if algorithm.algo not in ALGOS:
            hint = _suggest(algorithm.algo, ALGOS)
            yield f"algorithms.{label}: rl_zoo3 has no algorithm {algorithm.algo!r}{hint}; name one with `algo:`"
    for key, labels in {"baselines": study.baselines, **study.comparisons}.items():
        for label in labels:
            if label not in study.algorithms:
                yield f"{key}: {label!r} is not among the study's algorithms, {', '.join(study.algorithms)}"
    if study.steps % study.evaluation.every:
        yield (
            f"evaluation.every: {study.evaluation.every} does not divide the {study.steps} steps, "
            "so that the last steps would not be evaluated"
        )
    for env in study.environments:
        if env not in gym.registry:
            hint = _suggest(env, gym.registry)
            yield f"environments: gymnasium knows no {env!r}{hint}; is a module missing in gym_packages?"


def _find_missing_studies(study: Study, folder: Path) -> Iterable[str]:
    for other in study.includes:
        if not any((place / f"{other}.yml").is_file() for place in (folder, DEFINITIONS)):
            yield f"includes: there is no study {other!r} in {folder} or {DEFINITIONS}"


def _suggest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
