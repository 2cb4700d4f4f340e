"""
The state of a run besides its networks: what a checkpoint must hold so that training continues bit for bit.

A simulator's inner state can't be saved. But the start of an episode can be made again: put the environment's random
generator back into its state before the reset, and reset again. So checkpoints are saved between episodes. Both the run
that is saved and the run that is resumed from the checkpoint start the next episodes in the same way:

- "replayed": The reset that ended the last episodes is made again. It starts from the environments' generators as they were
  before the last step. If it leads to the present generators and observations, it was the same reset, and the checkpoint
  leaves no trace in the run.
- "restarted": Otherwise, the environments are reset once more, and unfinished episodes are truncated, as a time limit would
  do. This happens if episodes are unfinished, or if the environments run in other processes, use their generators in their
  steps, or have a wrapper that is not SB3's.
"""

import contextlib
import copy
import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.save_util import recursive_getattr
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecCheckNan,
    VecEnv,
    VecEnvWrapper,
    VecExtractDictObs,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
)
from stable_baselines3.her import HerReplayBuffer

from sb3_flowrl.checkpoint import pickling, run_identity
from sb3_flowrl.checkpoint.files import (
    CheckpointError,
    FileWriter,
    read_manifest,
    read_newest,
    resolve_folder,
    write_checkpoint,
)
from sb3_flowrl.checks import as_env, check_positive_int

SelfOffPolicyAlgorithm = TypeVar("SelfOffPolicyAlgorithm", bound=OffPolicyAlgorithm)

#: The state of each environment's generator.
GeneratorStates = list[Mapping[str, Any]]

#: Attributes of SB3's wrappers that are restored.
WRAPPER_STATE: dict[type[VecEnvWrapper], tuple[str, ...]] = {
    VecNormalize: ("obs_rms", "ret_rms", "returns", "old_obs", "old_reward"),
    VecFrameStack: ("stacked_obs",),
    VecMonitor: ("episode_returns", "episode_lengths", "episode_count"),
    VecTransposeImage: (),
    VecCheckNan: (),
    VecExtractDictObs: (),
}
#: Options of SB3's wrappers. The user's options are kept, with a warning if they differ from the run's.
WRAPPER_OPTIONS: dict[type[VecEnvWrapper], tuple[str, ...]] = {
    VecNormalize: ("training", "norm_obs", "norm_reward", "norm_obs_keys", "clip_obs", "clip_reward", "gamma", "epsilon"),
}


# ------------------------------------------------------------------------------------------------------- random numbers


def random_states(model: OffPolicyAlgorithm) -> dict[str, Any]:
    """
    Return the states of all random generators except the environments'.

    :param model: the model, for the generator of its random first actions
    :return: the states by name
    """
    return dict(
        python=random.getstate(),
        numpy=np.random.get_state(),
        torch=th.get_rng_state(),
        # Asking would start CUDA if nothing has used it: seconds, half a gigabyte, and an error in a forked process
        cuda=th.cuda.get_rng_state_all() if th.cuda.is_initialized() else [],
        action_space=model.action_space.np_random.bit_generator.state,
    )


def restore_random_states(model: OffPolicyAlgorithm, states: dict[str, Any]) -> None:
    """
    Restore the states of all random generators except the environments'.

    :param model: the model, for the generator of its random first actions
    :param states: what :func:`random_states` returned
    """
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    th.set_rng_state(states["torch"])
    if states["cuda"] and th.cuda.is_available():
        th.cuda.set_rng_state_all(states["cuda"])
    model.action_space.np_random.bit_generator.state = states["action_space"]


def generator_states(env: VecEnv) -> GeneratorStates | None:
    """
    Return the states of the environments' random generators.

    :param env: the environments
    :return: the states of their ``np_random``, or None if an environment has none
    """
    base = env.unwrapped
    if isinstance(base, DummyVecEnv):
        generators = [getattr(each.unwrapped, "np_random", None) for each in base.envs]
    else:
        try:
            generators = base.get_attr("np_random")
        except (AttributeError, NotImplementedError):
            return None
    states = [each.bit_generator.state for each in generators if isinstance(each, np.random.Generator)]
    return states if len(states) == env.num_envs else None


def restore_generator_states(env: VecEnv, states: GeneratorStates) -> None:
    """
    Restore the states of the environments' random generators.

    :param env: the environments
    :param states: what :func:`generator_states` returned
    """
    base = env.unwrapped
    for index, state in enumerate(states):
        if isinstance(base, DummyVecEnv):
            # In place, because parts of the environment may share the generator
            base.envs[index].unwrapped.np_random.bit_generator.state = state
        else:
            bit_generator = getattr(np.random, state["bit_generator"])()
            bit_generator.state = state
            base.set_attr("np_random", np.random.Generator(bit_generator), indices=index)


# --------------------------------------------------------------------------------------------------------- environments


def wrappers(env: VecEnv) -> Iterator[VecEnvWrapper]:
    """
    Yield the wrappers of the environments, outermost first.

    :param env: the environments
    :return: their wrappers
    """
    while isinstance(env, VecEnvWrapper):
        yield env
        env = env.venv


def wrapper_states(env: VecEnv) -> list[tuple[str, dict[str, Any]]]:
    """
    Return the states and options of the environments' wrappers.

    :param env: the environments
    :return: for each wrapper, outermost first, its name and its state and options
    """
    return [
        (
            type(wrapper).__name__,
            {
                name: vars(wrapper)[name]
                for names in (WRAPPER_OPTIONS, WRAPPER_STATE)
                for name in names.get(type(wrapper), ())
                if name in vars(wrapper)
            },
        )
        for wrapper in wrappers(env)
    ]


def warn_of_lost_states(env: VecEnv) -> None:
    """
    Warn about wrappers whose state a checkpoint does not hold.

    :param env: the environments
    """
    unknown = [type(wrapper).__name__ for wrapper in wrappers(env) if type(wrapper) not in WRAPPER_STATE]
    if isinstance(base := env.unwrapped, DummyVecEnv):
        each = base.envs[0]
        while isinstance(each, gym.Wrapper):
            if isinstance(each, (gym.wrappers.NormalizeObservation, gym.wrappers.NormalizeReward)):
                unknown.append(type(each).__name__)
            each = each.env
    if unknown:
        warnings.warn(
            f"The checkpoint does not hold the state of {', '.join(unknown)}, so a run that is resumed from it may differ "
            "from this one. To normalize observations or rewards, use stable_baselines3's VecNormalize. The checkpoint holds "
            "its state."
        )


def restore_wrapper_states(env: VecEnv, states: list[tuple[str, dict[str, Any]]]) -> bool:
    """
    Restore statistics and other states of the wrappers, but not their options.

    A warning names the options that differ from the run's.

    :param env: the environments
    :param states: what :func:`wrapper_states` returned
    :return: whether all options are the run's
    :raises ValueError: if the environments are not wrapped as they were
    """
    here, there = [type(wrapper).__name__ for wrapper in wrappers(env)], [name for name, _ in states]
    if here != there:
        raise ValueError(
            f"The checkpoint's environment has the wrappers {there or 'none'} (outermost first), but the one given has "
            f"{here or 'none'}. Wrap it in the same way. The statistics of VecNormalize come from the checkpoint."
        )
    others: list[str] = []
    for wrapper, (class_name, state) in zip(wrappers(env), states, strict=True):
        for name, value in state.items():
            if name not in WRAPPER_OPTIONS.get(type(wrapper), ()):
                setattr(wrapper, name, _merge_statistics(vars(wrapper).get(name), value) if name == "obs_rms" else value)
            elif getattr(wrapper, name) != value:
                others.append(f"{class_name}({name}={getattr(wrapper, name)!r}), which was {value!r} in the run")
    if others:
        warnings.warn(
            f"The environment given has other options than the checkpoint's: {'; '.join(others)}. The options given are kept, "
            "with the checkpoint's statistics, so training does not continue as it would have."
        )
    return not others


def _merge_statistics(given: Any, saved: Any) -> Any:
    """Return the saved statistics, and the given ones for the keys of a Dict observation that the run did not normalize."""
    if isinstance(given, dict) and isinstance(saved, dict):
        return {key: saved.get(key, statistics) for key, statistics in given.items()}
    return saved


@contextlib.contextmanager
def early_resets_allowed(env: VecEnv) -> Iterator[None]:
    """
    Allow resets in the middle of an episode, even if a ``Monitor`` forbids them.

    :param env: the environments
    """
    base = env.unwrapped
    if isinstance(base, DummyVecEnv):
        monitors = []
        for each in base.envs:
            while isinstance(each, gym.Wrapper):
                if isinstance(each, Monitor):
                    monitors.append((each, each.allow_early_resets, each.rewards))
                    each.allow_early_resets = True
                each = each.env
        try:
            yield
        except Exception:
            for monitor, _, rewards in monitors:
                monitor.rewards = rewards  # the episode continues
            raise
        finally:
            for monitor, is_allowed, _ in monitors:
                monitor.allow_early_resets = is_allowed
    elif isinstance(base, SubprocVecEnv) and base.has_attr("allow_early_resets") and base.has_attr("set_wrapper_attr"):
        were_allowed = base.get_attr("allow_early_resets")
        base.env_method("set_wrapper_attr", "allow_early_resets", True)
        yield
        for index, was_allowed in enumerate(were_allowed):
            base.env_method("set_wrapper_attr", "allow_early_resets", was_allowed, indices=index)
    else:
        yield


def reset_environments(env: VecEnv) -> Any:
    """
    Reset the environments, even in the middle of their episodes.

    :param env: the environments, with or without wrappers
    :return: the first observations
    :raises CheckpointError: if they can't be reset now, and none of them was
    """
    base = env.unwrapped
    infos = list(base.reset_infos)
    try:
        with early_resets_allowed(env):
            return env.reset()
    except Exception as error:
        if isinstance(base, DummyVecEnv) and all(now is then for now, then in zip(base.reset_infos, infos, strict=True)):
            raise CheckpointError(
                f"A checkpoint must reset the environment before its episode has ended, but that fails: {error!r}."
            ) from error
        raise  # training can't continue if only some of them were reset


def is_between_episodes(model: OffPolicyAlgorithm) -> bool:
    """
    Tell whether all environments have just ended an episode.

    :param model: a model that has collected transitions
    :return: whether the last stored transition of every environment ended its episode
    """
    buffer = model.replay_buffer
    assert buffer is not None
    return bool((buffer.full or buffer.pos > 0) and buffer.dones[buffer.pos - 1].all())


def replay_reset(model: OffPolicyAlgorithm, generators: GeneratorStates | None, expected: GeneratorStates | None) -> Any:
    """
    Make the environments' last reset again, without the wrappers noticing.

    :param model: the model
    :param generators: the environments' generators before the last step
    :param expected: the environments' generators now
    :return: the environments' first observations, or None if it was not the same reset
    """
    assert model.env is not None
    has_other_wrappers = any(type(wrapper) not in WRAPPER_STATE for wrapper in wrappers(model.env))
    if generators is None or has_other_wrappers or not is_between_episodes(model):
        return None
    base = model.env.unwrapped
    assert isinstance(base, DummyVecEnv)  # generators before a step are kept for this class only
    current_obs = base._obs_from_buf()
    base._reset_seeds()  # a seed that waits for the next reset would override the generators
    restore_generator_states(base, generators)
    try:
        first_obs = reset_environments(base)
    except CheckpointError:
        return None
    return first_obs if generator_states(base) == expected and _equal(first_obs, current_obs) else None


def reset_and_truncate(model: OffPolicyAlgorithm) -> Any:
    """
    Reset the environments, and truncate unfinished episodes as a time limit would do.

    :param model: the model
    :return: the new episodes' first observations, as the model gets them
    """
    assert model.env is not None
    model.env.unwrapped._reset_seeds()
    model._last_obs = reset_environments(model.env)
    truncate_episodes(model.replay_buffer)
    if model.action_noise is not None:
        model.action_noise.reset()
    if (reward_scale := getattr(model, "reward_scale", None)) is not None:
        reward_scale.restart()
    if model._vec_normalize_env is not None:
        model._last_original_obs = model._vec_normalize_env.get_original_obs()
    return model._last_obs


def truncate_episodes(buffer: ReplayBuffer | None) -> None:
    """
    Mark the newest transition of every environment as the last of its episode.

    Episodes that were unfinished count as ended by a time limit.

    :param buffer: the replay buffer
    """
    if buffer is None or not (buffer.full or buffer.pos > 0):
        return
    if isinstance(buffer, HerReplayBuffer):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the warning suggests an argument that does not exist here
            buffer.truncate_last_trajectory()
        return
    last = buffer.pos - 1
    if buffer.handle_timeout_termination:
        buffer.timeouts[last] = np.where(buffer.dones[last], buffer.timeouts[last], True)
    buffer.dones[last] = True


# -------------------------------------------------------------------------------------------------------- replay buffer


def _storages(buffer: ReplayBuffer) -> list[tuple[str, str | None]]:
    """List the arrays that hold transitions by attribute, and by key in a dict of arrays (Dict observations)."""

    def is_storage(value: Any) -> bool:
        return isinstance(value, np.ndarray) and value.ndim > 1 and value.shape[0] == buffer.buffer_size

    names: list[tuple[str, str | None]] = []
    for name, value in vars(buffer).items():
        if is_storage(value):
            names.append((name, None))
        elif isinstance(value, dict):
            names.extend((name, key) for key, array in value.items() if is_storage(array))
    return names


def _map_storages(
    buffer: ReplayBuffer, names: list[tuple[str, str | None]], change: Callable[[np.ndarray], np.ndarray]
) -> None:
    for name, key in names:
        value = getattr(buffer, name)
        setattr(buffer, name, change(value) if key is None else {**value, key: change(value[key])})


def _pack(buffer: ReplayBuffer, n_rows: int) -> tuple[ReplayBuffer, list[tuple[str, str | None]]]:
    """Return a copy of the replay buffer with only its first rows, and the list of its arrays that have rows."""
    packed, names = copy.copy(buffer), _storages(buffer)
    _map_storages(packed, names, lambda array: array[:n_rows])
    return packed, names


def dump_replay_buffer(buffer: ReplayBuffer, file: BinaryIO) -> None:
    """
    Pickle a replay buffer of any class, without its empty rows.

    :param buffer: the replay buffer
    :param file: file to write to
    """
    packed, names = _pack(buffer, buffer.size())
    pickling.dump((packed, names), file)


def load_replay_buffer(model: OffPolicyAlgorithm, path: Path) -> None:
    """
    Load a replay buffer into a model.

    :param model: the model
    :param path: the file that :func:`dump_replay_buffer` wrote
    """
    buffer, names = pickling.load(path)

    def unpack(array: np.ndarray) -> np.ndarray:
        if len(array) == buffer.buffer_size:
            return array
        storage = np.zeros((buffer.buffer_size, *array.shape[1:]), dtype=array.dtype)
        storage[: len(array)] = array
        return storage

    _map_storages(buffer, names, unpack)
    buffer.device = model.device
    if isinstance(buffer, HerReplayBuffer):
        assert model.env is not None
        buffer.set_env(model.env)
    model.replay_buffer = buffer


# -------------------------------------------------------------------------------------------------------------- the run


def save_episode_start(model: OffPolicyAlgorithm, before_step: GeneratorStates | None) -> dict[str, Any]:
    """
    Start the next episodes of a run that is being saved, as the resumed run will start them.

    :param model: the model
    :param before_step: states of the environments' generators before the last step, if they are known
    :return: what :func:`restore_episode_start` needs to do the same
    """
    assert model.env is not None
    warn_of_lost_states(model.env)
    state: dict[str, Any] = dict(n_envs=model.n_envs, generators=generator_states(model.env), random=random_states(model))
    if model._last_obs is None:  # the run has not started
        return dict(state, wrappers=copy.deepcopy(wrapper_states(model.env)), start="fresh")

    first_obs = replay_reset(model, before_step, state["generators"])
    if first_obs is not None:
        observations = dict(last_obs=model._last_obs, last_original_obs=model._last_original_obs, first_obs=first_obs)
        state.update(observations, start="replayed", generators=before_step)
        return dict(state, wrappers=copy.deepcopy(wrapper_states(model.env)))

    if state["generators"] is not None:
        restore_generator_states(model.env, state["generators"])
    restore_random_states(model, state["random"])
    state["wrappers"] = copy.deepcopy(wrapper_states(model.env))
    return dict(state, start="restarted", first_obs=copy.deepcopy(reset_and_truncate(model)))


def restore_episode_start(model: OffPolicyAlgorithm, state: dict[str, Any]) -> None:
    """
    Start the next episodes as the saved run did, or warn that this is not possible.

    :param model: the model that has just been loaded
    :param state: what :func:`save_episode_start` returned
    :raises ValueError: if the environments are not wrapped as they were
    """
    assert model.env is not None
    has_same_options = restore_wrapper_states(model.env, state["wrappers"])
    if state["generators"] is not None:
        restore_generator_states(model.env, state["generators"])
    restore_random_states(model, state["random"])
    if state["start"] == "fresh":
        return
    if not has_same_options:  # observations differ
        reset_and_truncate(model)
        return
    if state["start"] == "replayed":
        base = model.env.unwrapped
        base._reset_seeds()
        first_obs = reset_environments(base)
        model._last_obs, model._last_original_obs = state["last_obs"], state["last_original_obs"]
    if state["start"] == "restarted" or not _equal(first_obs, state["first_obs"]):
        first_obs = reset_and_truncate(model)
    if not _equal(first_obs, state["first_obs"]):
        warnings.warn(
            "The environment does not start its episodes as in the saved run. Training continues, but not bit for bit as it "
            "would have. Is it another environment? Or does it draw random numbers from a source other than `np_random` and "
            "the global generators? Such numbers can't be restored."
        )


def _equal(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(np.array_equal(ours[key], theirs[key]) for key in ours)
    return np.array_equal(ours, theirs)


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
    state = dict(save_episode_start(model, before_step), has_cut_episodes=identity.has_cut_episodes)
    # In memory first: the networks are small, and a full disk is then reported as the OSError that it is
    networks = pickling.save_model(model)
    files: dict[str, FileWriter] = {
        "model.zip": lambda file: file.write(networks),
        "replay_buffer.pkl": lambda file: dump_replay_buffer(model.replay_buffer, file),  # type: ignore[arg-type]
        "run_state.pkl": lambda file: pickling.dump(state, file),
    }
    return write_checkpoint(folder, model.num_timesteps, files, keep, run_identity.describe_run(model))


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


def check_savable(model: OffPolicyAlgorithm) -> None:
    """
    Check that everything in a checkpoint but the transitions can be saved, without using the disk.

    This finds errors before any work is lost.

    :param model: the model
    :raises CheckpointError: if something can't be pickled; the message names it
    """
    pickling.save_model(model)
    if model.replay_buffer is not None:
        empty, names = _pack(model.replay_buffer, 0)
        # HER's state leaves out its environment
        parts = empty.__getstate__() if isinstance(empty, HerReplayBuffer) else vars(empty)
        pickling.check_picklable("the replay buffer's", (empty, names), parts)
    if model.env is not None:
        for class_name, state in wrapper_states(model.env):
            pickling.check_picklable(f"{class_name}'s", state, state)


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
