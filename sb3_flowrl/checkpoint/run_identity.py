"""
The identity of a checkpoint's run: a random name, and the arguments that the run's model was made with.
"""

import difflib
import functools
import inspect
import math
import platform
import uuid
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import stable_baselines3
import torch as th
from gymnasium import Wrapper
from gymnasium.wrappers import TimeLimit
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.noise import VectorizedActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import TrainFreq
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_flowrl.checkpoint.files import CheckpointError, list_checkpoints, read_manifest
from sb3_flowrl.version import __version__

#: Arguments that don't change what is learned. They may change when the run continues.
FREE_ARGUMENTS = ("verbose", "tensorboard_log")
#: Arguments that are not compared between runs.
_NOT_COMPARED = ("self", "env", "device", "_init_setup_model", *FREE_ARGUMENTS)
#: The classes that SB3 chooses from if no class of replay buffer is given.
_DEFAULT_BUFFERS = (ReplayBuffer, DictReplayBuffer, NStepReplayBuffer)


class OtherRunError(CheckpointError, ValueError):
    """
    Raised when a run is to write to, or continue from, the checkpoints of another run.

    It is also a ``ValueError``, because the arguments are what differs.
    """


@dataclass
class Identity:
    """
    The identity of a run, kept by its model and stored in its checkpoints.
    """

    #: A random name, which stays the same when the run is resumed. None for checkpoints that predate names.
    name: str | None = field(default_factory=lambda: uuid.uuid4().hex)
    #: Whether ``ResumableCheckpointCallback`` has truncated unfinished episodes to save a checkpoint.
    has_cut_episodes: bool = False

    def __deepcopy__(self, memo: dict[int, Any]) -> "Identity":
        return Identity(has_cut_episodes=self.has_cut_episodes)  # the run of a copied model is another run


def identity_of(model: OffPolicyAlgorithm) -> Identity:
    """
    Return the identity of a model's run, a new one if it has none.

    :param model: the model
    :return: the identity of its run
    """
    identity = vars(model).get("_run_identity")
    if identity is None:
        identity = Identity()
        set_identity(model, identity)
    return identity


def set_identity(model: OffPolicyAlgorithm, identity: Identity) -> None:
    """
    Set the identity of a model's run.

    :param model: the model
    :param identity: the identity of the run that the model continues
    """
    vars(model)["_run_identity"] = identity


def describe_run(model: OffPolicyAlgorithm) -> dict[str, Any]:
    """
    Describe a model's run for the manifest.

    :param model: the model
    :return: entries of the manifest, as JSON
    """
    return dict(versions(), run=identity_of(model).name, arguments=describe_arguments(model))


# -------------------------------------------------------------------------------------------------------------- versions


def versions() -> dict[str, str]:
    """
    Return the versions of the packages that a run's numbers depend on.

    :return: versions by package
    """
    return dict(
        sb3_flowrl=__version__,
        stable_baselines3=stable_baselines3.__version__,
        torch=str(th.__version__),
        python=platform.python_version(),
    )


def warn_of_other_versions(path: Path, manifest: Mapping[str, Any]) -> None:
    """
    Warn if a checkpoint was written with other versions than those installed here.

    :param path: the checkpoint's own folder, for the message
    :param manifest: its manifest
    """

    def relevant(package: str, version: str) -> str:
        return version.rpartition(".")[0] if package == "python" else version  # Python's patch releases don't change pickles

    others = [
        f"{package} {manifest[package]} (here {version})"
        for package, version in versions().items()
        if relevant(package, str(manifest.get(package, version))) != relevant(package, version)
    ]
    if others:
        warnings.warn(
            f"The checkpoint {path} was written with {', '.join(others)}. Training continues, but perhaps not bit for bit as "
            "it would have."
        )


# ------------------------------------------------------------------------------------------------------------- arguments


def argument_names(algorithm: type[OffPolicyAlgorithm]) -> list[str]:
    """
    List the names of the arguments of a model's constructor.

    :param algorithm: class of the model
    :return: the names, including those of its ancestors' constructors if they are passed on
    """
    names: list[str] = []
    for ancestor in algorithm.__mro__:
        if "__init__" in vars(ancestor):
            parameters = inspect.signature(ancestor.__init__).parameters.values()  # type: ignore[misc]
            names += [each.name for each in parameters if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)]
            if not any(each.kind is each.VAR_KEYWORD for each in parameters):
                break
    return list(dict.fromkeys(names))


def describe_arguments(model: OffPolicyAlgorithm) -> dict[str, Any]:
    """
    Describe the arguments that a model was made with.

    Only arguments that change what is learned are included. Arguments that mean the same have the same description.

    :param model: a model, with or without networks (``_init_setup_model=False``)
    :return: the arguments by name, as JSON, and as ``env`` the id of the environment, or None if it has none
    """
    values: dict[str, Any] = {}
    for name in argument_names(type(model)):
        for attribute in (name, f"_{name}"):  # SB3 keeps stats_window_size in a private attribute
            if attribute in vars(model):
                values[name] = vars(model)[attribute]
    values["policy"] = model.policy_class
    if values.get("replay_buffer_class") in _DEFAULT_BUFFERS:
        values["replay_buffer_class"] = None
    if (n_steps := values.get("n_steps", 1)) > 1 and isinstance(values.get("replay_buffer_kwargs"), dict):
        # SB3 adds these itself
        of_n_steps = dict(n_steps=n_steps, gamma=model.gamma).items()
        values["replay_buffer_kwargs"] = dict(
            each for each in values["replay_buffer_kwargs"].items() if each not in of_n_steps
        )
    if isinstance(values.get("train_freq"), TrainFreq):
        values["train_freq"] = (model.train_freq.frequency, model.train_freq.unit.value)  # type: ignore[union-attr]
    elif isinstance(values.get("train_freq"), int):
        values["train_freq"] = (model.train_freq, "step")
    if isinstance(values.get("action_noise"), VectorizedActionNoise):  # SB3 wraps the noise for several environments
        values["action_noise"] = values["action_noise"].base_noise
    description = {name: describe(value) for name, value in values.items() if name not in _NOT_COMPARED}
    return dict(description, env=None if model.env is None else environment_id(model.env))


def describe(value: Any) -> Any:
    """
    Describe an argument as JSON.

    Functions, classes, and objects without a readable ``repr`` are described by their name, which is the same in all
    processes.

    :param value: an argument
    :return: its description
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)
    if isinstance(value, Mapping):
        return {str(key): describe(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [describe(each) for each in value]
    if isinstance(value, functools.partial):
        return [describe(value.func), describe(value.args), describe(value.keywords)]
    if hasattr(value, "__qualname__"):
        return value.__qualname__
    text = repr(value)
    return type(value).__qualname__ if " at 0x" in text else text


def environment_id(env: VecEnv) -> str | None:
    """
    Return the id of the environments.

    :param env: the environments
    :return: id under which the first one is registered, or None if it has none or runs in another process
    """
    base = env.unwrapped
    spec = getattr(base.envs[0].unwrapped, "spec", None) if isinstance(base, DummyVecEnv) else None
    return getattr(spec, "id", None)


def episode_limit(env: VecEnv) -> int | None:
    """
    Return the largest time limit of the environments.

    :param env: the environments
    :return: the most steps that an episode can have, or None if that is not known
    """
    base = env.unwrapped
    limits = []
    for each in base.envs if isinstance(base, DummyVecEnv) else ():
        while isinstance(each, Wrapper) and not isinstance(each, TimeLimit):
            each = each.env
        limits.append(each._max_episode_steps if isinstance(each, TimeLimit) else None)
    known = [limit for limit in limits if limit is not None]
    return max(known) if known and None not in limits else None


# ------------------------------------------------------------------------------------------------------------- other runs


def check_folder(model: OffPolicyAlgorithm, folder: Path) -> None:
    """
    Check that a folder does not hold another run's checkpoints.

    :param model: the model to save checkpoints of
    :param folder: the folder to save them in
    :raises OtherRunError: if the checkpoints there belong to another run; the message names the arguments that differ
    """
    name = identity_of(model).name
    for path in reversed(list_checkpoints(folder)):
        manifest = read_manifest(path)
        if manifest is None:
            continue
        if manifest.get("run") == name:
            return
        theirs = manifest.get("arguments")
        raise OtherRunError(
            f"{folder} holds the checkpoints of another run{_name_differences(theirs, describe_arguments(model))}. The newest "
            f"one is {path.name}. To continue that run, load it with FlowRL.load_checkpoint. To start this run, choose "
            "another folder, or delete that one."
        )


def _name_differences(theirs: Any, ours: dict[str, Any]) -> str:
    if not isinstance(theirs, dict):
        return ""
    differences = compare(theirs, ours)
    if not differences:
        return " with the same arguments"
    return " with other arguments: " + "; ".join(f"{each} in this run" for each in differences)


def compare(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """
    Describe the arguments that differ between two runs.

    :param theirs: arguments of a saved run, as JSON
    :param ours: arguments of another run, as JSON
    :return: one text for each argument that both have and that differs
    """
    return [
        f"{name}={theirs[name]!r} there and {name}={value!r}"
        for name, value in ours.items()
        if name in theirs and theirs[name] != value and not (name == "env" and None in (theirs[name], value))
    ]


def check_given_arguments(model: OffPolicyAlgorithm, path: Path, given: dict[str, Any]) -> None:
    """
    Check that a loaded run was made with the given arguments and in the same environment.

    :param model: a model that was loaded from a checkpoint
    :param path: the checkpoint's own folder
    :param given: arguments that the run is expected to have
    :raises OtherRunError: if the arguments or the environment differ; the message names the differences
    """
    theirs = describe_arguments(model)
    theirs["env"] = (read_manifest(path) or {}).get("arguments", {}).get("env")
    ours: dict[str, Any] = {} if model.env is None else dict(env=environment_id(model.env))
    if given:
        policy = given.get("policy", model.policy_class)
        others = dict(policy=policy, env=None, device=model.device, verbose=0, _init_setup_model=False)
        described = describe_arguments(type(model)(**{**given, **others}))  # a model without networks
        ours |= {name: described[name] for name in given if name in described}
    if differences := compare(theirs, ours):
        raise OtherRunError(
            f"The run of {path} has other arguments than those given: {'; '.join(f'{each} here' for each in differences)}. "
            "Leave them out to continue that run as it is, or give this run its own folder."
        )


def check_argument_names(algorithm: type[OffPolicyAlgorithm], given: Mapping[str, Any]) -> None:
    """
    Check that the constructor of a model has the given arguments.

    :param algorithm: class of the model
    :param given: arguments for its constructor
    :raises TypeError: if there is no such argument
    """
    known = [name for name in argument_names(algorithm) if name not in _NOT_COMPARED or name in FREE_ARGUMENTS]
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"Its arguments are {', '.join(known)}."
            raise TypeError(f"{algorithm.__name__} has no argument {name}. {hint}")
