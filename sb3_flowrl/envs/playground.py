"""
MuJoCo Playground's environments, which JAX runs side by side, as a vector environment of gymnasium.
"""

from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from sb3_flowrl.envs.missing import MissingSuiteError

try:
    import jax
    import jax.numpy as jp
    from mujoco_playground import registry
except ImportError as error:
    install = "Install it with: pip install 'sb3-flowrl[playground]'"
    raise MissingSuiteError("MuJoCo Playground", install, str(error)) from error


class PlaygroundVectorEnv(VectorEnv[Any, Any, Any]):
    """
    Environments of one task of MuJoCo Playground.

    Actions are within ±1. Where a task has several observations, as those for a privileged critic, the policy's
    (``"state"``) is used. Episodes are truncated after the task's own ``episode_length``.

    :param name: the task, such as "CheetahRun"
    :param num_envs: number of environments
    :param config_overrides: changes of the task's configuration. Without ``impl``, the physics run in JAX on a CPU, where
        Playground's own choice, Warp, compiles for minutes
    """

    def __init__(self, name: str, num_envs: int = 1, config_overrides: dict[str, Any] | None = None):
        config = registry.get_default_config(name)
        defaults = {"impl": "jax"} if "impl" in config and jax.default_backend() == "cpu" else {}
        env = registry.load(name, config_overrides={**defaults, **(config_overrides or {})})
        self.num_envs = num_envs
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
        size = env.observation_size
        shape = (size,) if isinstance(size, int) else tuple(size["state"])
        self.single_observation_space = spaces.Box(-np.inf, np.inf, shape, np.float32)
        self.single_action_space = spaces.Box(-1, 1, (env.action_size,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._episode_length = int(config.episode_length)
        self._reset, self._step, self._merge = jax.jit(jax.vmap(env.reset)), jax.jit(jax.vmap(env.step)), jax.jit(_merge)
        self._key = jax.random.PRNGKey(0)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """
        Start a new episode in all environments.

        :param seed: seed of all environments, or a list whose first entry is it; None goes on with the random numbers
        :param options: not used
        :return: the observations, and no infos
        """
        seed = seed[0] if isinstance(seed, list) else seed
        if seed is not None:
            self._key = jax.random.PRNGKey(seed)
        self._state = self._first_states()
        self._steps = np.zeros(self.num_envs, dtype=int)
        return _observations(self._state), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """
        Take a step in all environments, and reset those whose episodes end.

        :param actions: one action for each environment
        :return: observations, rewards, whether episodes are terminated and truncated, and infos with last observations
        """
        self._state = self._step(self._state, jp.asarray(actions))
        self._steps += 1
        observations, rewards = _observations(self._state), np.array(self._state.reward)
        terminated, truncated = np.asarray(self._state.done) > 0, self._steps >= self._episode_length
        done = terminated | truncated
        if not done.any():
            return observations, rewards, terminated, truncated, {}
        self._state = self._merge(done, self._first_states(), self._state)
        self._steps[done] = 0
        return _observations(self._state), rewards, terminated, truncated, {"final_obs": observations, "_final_obs": done}

    def _first_states(self) -> Any:
        self._key, key = jax.random.split(self._key)
        return self._reset(jax.random.split(key, self.num_envs))


def _merge(done: Any, first: Any, state: Any) -> Any:
    """Take the first state of the environments that are done, and the present one of the others."""
    return jax.tree.map(lambda new, old: jp.where(done.reshape(-1, *[1] * (old.ndim - 1)), new, old), first, state)


def _observations(state: Any) -> np.ndarray:
    observations = state.obs["state"] if isinstance(state.obs, dict) else state.obs
    return np.array(observations, dtype=np.float32)
