"""
A run in a checkpoint: its networks, its replay buffer, and the state in which its next episodes start.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch as th
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.save_util import recursive_getattr
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.her import HerReplayBuffer

from sb3_flowrl.checkpoint import pickling, run_identity
from sb3_flowrl.checkpoint.episodes import restore_episode_start, save_episode_start
from sb3_flowrl.checkpoint.files import (
    CheckpointError,
    FileWriter,
    check_writable,
    lock_folder,
    read_manifest,
    read_newest,
    resolve_folder,
    write_checkpoint,
)
from sb3_flowrl.checkpoint.random_states import GeneratorStates
from sb3_flowrl.checkpoint.replay_buffer import dump_replay_buffer, load_replay_buffer, pack_buffer
from sb3_flowrl.checkpoint.wrappers import wrapper_states
from sb3_flowrl.checks import as_env, check_positive_int

SelfOffPolicyAlgorithm = TypeVar("SelfOffPolicyAlgorithm", bound=OffPolicyAlgorithm)


def save_run(model: OffPolicyAlgorithm, folder: str | Path, keep: int, before_step: GeneratorStates | None) -> Path:
    """
    Write a checkpoint of a run, see ``FlowRL.save_checkpoint``.

    :param model: the model
    :param folder: folder of the checkpoints
    :param keep: number of newest complete checkpoints to keep
    :param before_step: as for :func:`save_episode_start`
    :return: the checkpoint's own folder
    :raises ValueError: if the model has no environment or no replay buffer, like one that was loaded for prediction
    """
    if model.env is None or model.replay_buffer is None:
        raise ValueError(
            "A checkpoint saves a run, but this model has no environment to run in. Give it one with `set_env`. To save the "
            "model for prediction only, use `save`."
        )
    check_positive_int("keep", keep)  # before the environment is touched
    check_finite(model)
    try:
        run_identity.check_folder(model, resolve_folder(folder))
    except run_identity.OtherRunError as error:
        warnings.warn(f"{error} The checkpoints of both runs stay. Loading takes the newest one of all.")
    identity = run_identity.identity_of(model)
    check_writable(folder)
    # What can fail comes before the episodes are touched; a disk that fills up at this moment still fails after that
    with lock_folder(resolve_folder(folder)):
        state = dict(save_episode_start(model, before_step), has_cut_episodes=identity.has_cut_episodes)
        # In memory first: the networks are small, and a full disk is then reported as the OSError that it is
        networks = pickling.save_model(model)
        files: dict[str, FileWriter] = {
            "model.zip": lambda file: file.write(networks),
            "replay_buffer.pkl": lambda file: dump_replay_buffer(model.replay_buffer, file),  # type: ignore[arg-type]
            "run_state.pkl": lambda file: pickling.dump(state, file),
        }
        return write_checkpoint(folder, model.num_timesteps, files, keep, run_identity.describe_run(model))


def load_newest_run(
    algorithm: type[SelfOffPolicyAlgorithm],
    folder: str | Path,
    env: GymEnv | str,
    device: th.device | str = "auto",
    custom_objects: dict[str, Any] | None = None,
    arguments: dict[str, Any] | None = None,
) -> SelfOffPolicyAlgorithm:
    """
    Load the newest complete checkpoint of a run, see ``FlowRL.load_checkpoint``.

    :param algorithm: class of the model
    :param folder: folder of the checkpoints
    :param env: the environment, made and wrapped as in the run
    :param device: Device on which the code should run.
    :param custom_objects: as in ``load``
    :param arguments: arguments of the model, which must be the run's
    :return: the model
    :raises CheckpointError: if there is no complete checkpoint, or something in it can't be unpickled
    :raises ValueError: if the environment or an argument is not the run's
    :raises TypeError: for an unknown argument
    """
    arguments = arguments or {}
    if env is None:
        raise run_identity.OtherRunError(
            f"env=None, but the run in {folder} needs an environment to continue. Pass the one that it was made with. For "
            "prediction only, load the model.zip in one of its checkpoints with `load`."
        )
    run_identity.check_argument_names(algorithm, arguments)
    env = as_env(env, 0)
    changed = {name: value for name, value in arguments.items() if name in run_identity.FREE_ARGUMENTS}

    def read(path: Path) -> SelfOffPolicyAlgorithm:
        model = pickling.load_model(algorithm, path / "model.zip", env, device, custom_objects, **changed)
        run_identity.check_given_arguments(model, path, arguments)
        load_run(model, path)
        return model

    return read_newest(folder, read)


def load_run(model: OffPolicyAlgorithm, path: Path) -> None:
    """
    Restore the state of a run besides its networks, see ``FlowRL.load_checkpoint``.

    :param model: the model, loaded from the checkpoint's ``model.zip``
    :param path: the checkpoint's own folder
    :raises CheckpointError: if something can't be unpickled
    :raises ValueError: if the environments do not fit
    """
    manifest = read_manifest(path) or {}
    run_identity.warn_of_other_versions(path, manifest)
    state = pickling.load(path / "run_state.pkl")
    if state["n_envs"] != model.n_envs:
        raise ValueError(f"The checkpoint's run has n_envs={state['n_envs']}, but the given environment has {model.n_envs}.")
    load_replay_buffer(model, path / "replay_buffer.pkl")
    identity = run_identity.Identity(manifest.get("run"), state.get("has_cut_episodes", False))
    run_identity.set_identity(model, identity)
    restore_episode_start(model, state)


def check_savable(model: OffPolicyAlgorithm) -> None:
    """
    Check that everything in a checkpoint but the transitions can be saved, without using the disk.

    This finds errors before any work is lost.

    :param model: the model
    :raises CheckpointError: if something can't be pickled; the message names it
    """
    pickling.save_model(model)
    if model.replay_buffer is not None:
        empty, names = pack_buffer(model.replay_buffer, 0)
        # HER's state leaves out its environment
        parts = empty.__getstate__() if isinstance(empty, HerReplayBuffer) else vars(empty)
        pickling.check_picklable("the replay buffer's", (empty, names), parts)
    if model.env is not None:
        for class_name, state in wrapper_states(model.env):
            pickling.check_picklable(f"{class_name}'s", state, state)


def check_finite(model: OffPolicyAlgorithm) -> None:
    """
    Check that the networks and optimizers hold only finite values.

    :param model: the model
    :raises CheckpointError: if there are NaN or infinite values; the message names the first tensor that holds any
    """
    state_names, variable_names = model._get_torch_save_params()
    tensors = {name: recursive_getattr(model, name) for name in variable_names}
    for state_name in state_names:
        tensors.update(_tensors_of(state_name, recursive_getattr(model, state_name).state_dict()))
    floats = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, th.Tensor) and tensor.is_floating_point()}
    if not floats:
        return
    # One transfer from the device for all of them
    are_finite = th.stack([th.isfinite(tensor).all().to(model.device) for tensor in floats.values()]).tolist()
    bad = [name for name, is_finite in zip(floats, are_finite, strict=True) if not is_finite]
    if bad:
        n_bad = int((~th.isfinite(floats[bad[0]])).sum())
        raise CheckpointError(
            f"No checkpoint is saved at step {model.num_timesteps} because the networks have diverged: {n_bad} of "
            f"{floats[bad[0]].numel()} values of {bad[0]} are not finite"
            f"{f' ({len(bad) - 1} more tensors hold such values)' if bad[1:] else ''}. Existing checkpoints are unchanged."
        )


def _tensors_of(name: str, state: Any) -> dict[str, th.Tensor]:
    """Collect the tensors of nested dictionaries, by their keys joined with dots."""
    if isinstance(state, th.Tensor):
        return {name: state}
    if not isinstance(state, Mapping):
        return {}
    return {key: tensor for part, value in state.items() for key, tensor in _tensors_of(f"{name}.{part}", value).items()}
