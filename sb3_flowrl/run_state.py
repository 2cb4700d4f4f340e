"""
The state of a run beside its networks: what a checkpoint has to hold so that training goes on bit for bit as if it had not
been interrupted.

A simulator's inner state can't be saved. But that of an episode's first instant can be made again, by a reset from the
generator's state before the reset. So a checkpoint is taken between episodes, and both the run that goes on and the one
that is resumed from the checkpoint begin the next episodes in the same way:

- "replayed": the reset that ended the last episodes is made again, from the environments' generators as they were before the
  last step. Where that leaves the generators as they are now, it was the same reset, and the checkpoint leaves no trace in
  the run.
- "restarted": where that can't be (episodes are under way, the environments are in other processes, use their generators in
  their steps, or are in a wrapper that is not SB3's), they are reset once more, and episodes under way end as by a time-out.
"""

import copy
import io
import pickle
import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
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

from sb3_flowrl.checkpoint import FileWriter, write_checkpoint
from sb3_flowrl.checks import check_positive_int

#: States of the environments' generators, one each.
GeneratorStates = list[Mapping[str, Any]]

_NORMALIZE_STATE = (
    "training norm_obs norm_reward norm_obs_keys clip_obs clip_reward gamma epsilon "
    "obs_rms ret_rms returns old_obs old_reward"
)  # fmt: skip
#: What has to be restored of SB3's wrappers.
WRAPPER_STATE: dict[type[VecEnvWrapper], tuple[str, ...]] = {
    VecNormalize: tuple(_NORMALIZE_STATE.split()),
    VecFrameStack: ("stacked_obs",),
    VecMonitor: ("episode_returns", "episode_lengths", "episode_count"),
    VecTransposeImage: (),
    VecCheckNan: (),
    VecExtractDictObs: (),
}


# ------------------------------------------------------------------------------------------------------- random numbers


def random_states(model: OffPolicyAlgorithm) -> dict[str, Any]:
    """
    :param model: the model, for the generator of its random first actions
    :return: the states of all generators but the environments'
    """
    return dict(
        python=random.getstate(),
        numpy=np.random.get_state(),
        torch=th.get_rng_state(),
        # Where nothing has used CUDA, to ask would start it: seconds, half a gigabyte, and an error in a forked process
        cuda=th.cuda.get_rng_state_all() if th.cuda.is_initialized() else [],
        action_space=model.action_space.np_random.bit_generator.state,
    )


def restore_random_states(model: OffPolicyAlgorithm, states: dict[str, Any]) -> None:
    """
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
    :param env: the environments
    :return: the states of their ``np_random``, or None where they have none
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
    :param env: the environments
    :param states: what :func:`generator_states` returned
    """
    base = env.unwrapped
    for index, state in enumerate(states):
        if isinstance(base, DummyVecEnv):
            # In place, as parts of the environment may share the generator
            base.envs[index].unwrapped.np_random.bit_generator.state = state
        else:
            bit_generator = getattr(np.random, state["bit_generator"])()
            bit_generator.state = state
            base.set_attr("np_random", np.random.Generator(bit_generator), indices=index)


# --------------------------------------------------------------------------------------------------------- environments


def wrappers(env: VecEnv) -> Iterator[VecEnvWrapper]:
    """
    :param env: the environments
    :return: their wrappers, outermost first
    """
    while isinstance(env, VecEnvWrapper):
        yield env
        env = env.venv


def wrapper_states(env: VecEnv) -> list[tuple[str, dict[str, Any]]]:
    """
    :param env: the environments
    :return: the name of each wrapper, outermost first, and what has to be restored of it
    """
    return [
        (
            type(wrapper).__name__,
            {name: getattr(wrapper, name) for name in WRAPPER_STATE.get(type(wrapper), ()) if hasattr(wrapper, name)},
        )
        for wrapper in wrappers(env)
    ]


def warn_of_lost_states(env: VecEnv) -> None:
    """
    Warn of wrappers whose state a checkpoint does not hold.

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
            f"The checkpoint does not hold the state of {', '.join(unknown)}, so that a run that is resumed from it may "
            "differ from this one. To normalise observations or rewards use stable_baselines3's VecNormalize, whose state "
            "it holds."
        )


def restore_wrapper_states(env: VecEnv, states: list[tuple[str, dict[str, Any]]]) -> None:
    """
    :param env: the environments
    :param states: what :func:`wrapper_states` returned
    :raises ValueError: if the environments are not wrapped as they were
    """
    here, there = [type(wrapper).__name__ for wrapper in wrappers(env)], [name for name, _ in states]
    if here != there:
        raise ValueError(
            f"The checkpoint's environment has the wrappers {there or 'none'} (outermost first), but the one given has "
            f"{here or 'none'}. Wrap it in the same way; the statistics of VecNormalize come from the checkpoint."
        )
    for wrapper, (_, state) in zip(wrappers(env), states, strict=True):
        for name, value in state.items():
            setattr(wrapper, name, value)


def is_between_episodes(model: OffPolicyAlgorithm) -> bool:
    """
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
    assert isinstance(base, DummyVecEnv)  # the only one whose generators are kept
    current_obs = base._obs_from_buf()
    base._reset_seeds()  # a seed that waits for its reset would overrule the generators
    restore_generator_states(base, generators)
    first_obs = base.reset()
    return first_obs if generator_states(base) == expected and _equal(first_obs, current_obs) else None


def restart_episodes(model: OffPolicyAlgorithm) -> Any:
    """
    Reset the environments, and end the episodes under way as by a time-out.

    :param model: the model
    :return: the new episodes' first observations, as the model gets them
    """
    assert model.env is not None
    model.env.unwrapped._reset_seeds()
    end_episodes(model.replay_buffer)
    if model.action_noise is not None:
        model.action_noise.reset()
    model._last_obs = model.env.reset()  # type: ignore[assignment]
    if model._vec_normalize_env is not None:
        model._last_original_obs = model._vec_normalize_env.get_original_obs()
    return model._last_obs


def end_episodes(buffer: ReplayBuffer | None) -> None:
    """
    Mark the newest transition of every environment as its episode's last, by a time-out if it was not.

    :param buffer: the replay buffer
    """
    if buffer is None or not (buffer.full or buffer.pos > 0):
        return
    if isinstance(buffer, HerReplayBuffer):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it advises an argument that we have no say in
            buffer.truncate_last_trajectory()
        return
    last = buffer.pos - 1
    if buffer.handle_timeout_termination:
        buffer.timeouts[last] = np.where(buffer.dones[last], buffer.timeouts[last], True)
    buffer.dones[last] = True


# -------------------------------------------------------------------------------------------------------- replay buffer


def _storages(buffer: ReplayBuffer) -> list[tuple[str, str | None]]:
    """The arrays that hold transitions: the attribute's name, and for a dict of arrays (Dict observations) the key."""

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


def dump_replay_buffer(buffer: ReplayBuffer, file: BinaryIO) -> None:
    """
    Pickle a replay buffer of any class, without the rows that are still empty.

    :param buffer: the replay buffer
    :param file: where to
    """
    n_rows = buffer.size()
    packed, names = copy.copy(buffer), _storages(buffer)
    _map_storages(packed, names, lambda array: array[:n_rows])
    pickle.dump((packed, names), file, protocol=5)


def load_replay_buffer(model: OffPolicyAlgorithm, file: BinaryIO) -> None:
    """
    :param model: the model that gets the replay buffer
    :param file: what :func:`dump_replay_buffer` wrote
    """
    buffer, names = pickle.load(file)

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


def begin_episodes(model: OffPolicyAlgorithm, before_step: GeneratorStates | None) -> dict[str, Any]:
    """
    Let a run that is being saved begin its next episodes as the one that is resumed from it will.

    :param model: the model
    :param before_step: states of the environments' generators before the last step, where they are known
    :return: what :func:`resume_episodes` needs to do the same
    """
    assert model.env is not None
    warn_of_lost_states(model.env)
    state: dict[str, Any] = dict(n_envs=model.n_envs, generators=generator_states(model.env), random=random_states(model))
    if model._last_obs is None:  # it has not begun
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
    return dict(state, start="restarted", first_obs=copy.deepcopy(restart_episodes(model)))


def resume_episodes(model: OffPolicyAlgorithm, state: dict[str, Any]) -> None:
    """
    Begin the next episodes as the run did that was saved. Warns where that can't be done.

    :param model: the model that has just been loaded
    :param state: what :func:`begin_episodes` returned
    :raises ValueError: if the environments are not wrapped as they were
    """
    assert model.env is not None
    restore_wrapper_states(model.env, state["wrappers"])
    if state["generators"] is not None:
        restore_generator_states(model.env, state["generators"])
    restore_random_states(model, state["random"])
    if state["start"] == "fresh":
        return
    if state["start"] == "replayed":
        base = model.env.unwrapped
        base._reset_seeds()
        first_obs = base.reset()
        model._last_obs, model._last_original_obs = state["last_obs"], state["last_original_obs"]
    if state["start"] == "restarted" or not _equal(first_obs, state["first_obs"]):
        first_obs = restart_episodes(model)
    if not _equal(first_obs, state["first_obs"]):
        warnings.warn(
            "The environment does not start its episodes as it did in the run that was saved, so training goes on, but not "
            "bit for bit as it would have. Is it another environment, or does it draw random numbers from elsewhere than "
            "`np_random` and the global generators? Those can't be restored."
        )


def _equal(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(np.array_equal(ours[key], theirs[key]) for key in ours)
    return np.array_equal(ours, theirs)


def save_run(model: OffPolicyAlgorithm, folder: str | Path, keep: int, before_step: GeneratorStates | None) -> Path:
    """
    Write a checkpoint of a run, see ``FlowRL.save_checkpoint``.

    :param model: the model
    :param folder: where the checkpoints are
    :param keep: how many of them stay
    :param before_step: as for :func:`begin_episodes`
    :return: the checkpoint's own folder
    :raises ValueError: if the model has no environment or no replay buffer, as one that was loaded for prediction
    """
    if model.env is None or model.replay_buffer is None:
        raise ValueError(
            "A checkpoint is of a run, but this model has no environment to run in. Give it one with `set_env`, or, if it is "
            "only to be used for prediction, use `save`."
        )
    check_positive_int("keep", keep)  # before the environment is touched
    state = begin_episodes(model, before_step)
    # In memory first: so much is small, and a disk that is full shows itself as the OSError that it is
    networks = io.BytesIO()
    model.save(networks)
    files: dict[str, FileWriter] = {
        "model.zip": lambda file: file.write(networks.getbuffer()),
        "replay_buffer.pkl": lambda file: dump_replay_buffer(model.replay_buffer, file),  # type: ignore[arg-type]
        "run_state.pkl": lambda file: pickle.dump(state, file),
    }
    return write_checkpoint(folder, model.num_timesteps, files, keep)


def load_run(model: OffPolicyAlgorithm, path: Path) -> None:
    """
    Restore what belongs to a run beside the networks, see ``FlowRL.load_checkpoint``.

    :param model: the model, loaded from the checkpoint's ``model.zip``
    :param path: the checkpoint's own folder
    """
    with open(path / "run_state.pkl", "rb") as file:
        state = pickle.load(file)
    if state["n_envs"] != model.n_envs:
        raise ValueError(f"The checkpoint is of a run with n_envs={state['n_envs']}, but the one given has {model.n_envs}.")
    with open(path / "replay_buffer.pkl", "rb") as file:
        load_replay_buffer(model, file)
    resume_episodes(model, state)
