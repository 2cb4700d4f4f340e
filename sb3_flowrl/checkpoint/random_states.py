"""The states of all random generators that a run uses."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

#: The state of each environment's generator.
GeneratorStates = list[Mapping[str, Any]]


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
        # The machine that goes on with the run may have fewer devices
        for device, state in zip(range(th.cuda.device_count()), states["cuda"], strict=False):
            th.cuda.set_rng_state(state, device)
    model.action_space.np_random.bit_generator.state = states["action_space"]


def generator_states(env: VecEnv) -> GeneratorStates | None:
    """
    Return the states of the environments' random generators.

    :param env: the environments
    :return: the states of their ``np_random``, or None if an environment has none
    """
    base = env.unwrapped
    try:
        if isinstance(base, DummyVecEnv):
            generators = [each.unwrapped.np_random for each in base.envs]
        else:
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
            own = base.envs[index].unwrapped.np_random.bit_generator
            if type(own).__name__ == state["bit_generator"]:  # in place, because parts of the environment may share it
                own.state = state
                continue
        bit_generator = getattr(np.random, state["bit_generator"])()
        bit_generator.state = state
        base.set_attr("np_random", np.random.Generator(bit_generator), indices=index)
