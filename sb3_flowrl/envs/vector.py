"""
Gymnasium's vector environments as vector environments of Stable-Baselines3.

The two differ in what happens at the end of an episode. SB3 expects the first observation of the next episode at once, and the
last one in ``info["terminal_observation"]``. Gymnasium has three ways, its ``AutoresetMode``, and this module handles each.
"""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers.vector import DictInfoToList, RecordEpisodeStatistics
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn


class GymnasiumVecEnv(VecEnv):
    """
    A vector environment of gymnasium for SB3's algorithms.

    ::

        env = GymnasiumVecEnv(gym.make_vec("HalfCheetah-v5", num_envs=4))
        model = FlowRL("MlpPolicy", VecMonitor(env), gradient_steps=-1)

    :param env: the environment, such as ``gymnasium.make_vec`` returns
    :raises ValueError: if it resets environments at their next step and can't be asked to do it at once, or if gymnasium's
        ``RecordEpisodeStatistics`` would count wrongly
    """

    def __init__(self, env: VectorEnv[Any, Any, Any]):
        self._mode = AutoresetMode(env.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP))
        # Gymnasium's own classes reset the environments of a mask in every mode; others promise it only where it is disabled
        if self._mode is AutoresetMode.NEXT_STEP and not isinstance(env.unwrapped, SyncVectorEnv | AsyncVectorEnv):
            raise ValueError(
                f"{type(env.unwrapped).__name__} resets an environment at the step after its last one. SB3 would store that "
                "as a step of the task. Make it with autoreset_mode=AutoresetMode.SAME_STEP, or, if it is made by "
                "gymnasium.make_vec, with vectorization_mode='sync'."
            )
        if self._mode is not AutoresetMode.SAME_STEP and _has_wrapper(env, RecordEpisodeStatistics):
            # At the reset of some environments it forgets the returns of all
            raise ValueError(
                f"RecordEpisodeStatistics counts wrongly with {self._mode}. Leave it out, and wrap this environment in "
                "stable_baselines3.common.vec_env.VecMonitor. Or use autoreset_mode=AutoresetMode.SAME_STEP."
            )
        self.env = DictInfoToList(env)
        self._actions: np.ndarray | None = None
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def reset(self) -> VecEnvObs:
        """
        Start a new episode in all environments.

        :return: the observations
        :raises ValueError: if ``set_options`` was given other options for each environment
        """
        if any(options != self._options[0] for options in self._options):
            raise ValueError(f"options={self._options} differ, but gymnasium takes the same options for all environments.")
        observations, self.reset_infos = self.env.reset(seed=self._seeds, options=self._options[0] or None)  # type: ignore[arg-type]
        self._reset_seeds()
        self._reset_options()
        return _copy(observations)

    def step_async(self, actions: np.ndarray) -> None:
        """
        Keep the actions for ``step_wait``.

        :param actions: one action for each environment
        """
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """
        Take a step in all environments, and reset those whose episodes end.

        :return: observations, rewards, whether episodes ended, and infos
        """
        observations, rewards, terminated, truncated, infos = self.env.step(self._actions)
        observations, dones = _copy(observations), terminated | truncated
        for info, is_time_limit in zip(infos, truncated & ~terminated, strict=True):
            info["TimeLimit.truncated"] = bool(is_time_limit)
        if dones.any():
            observations, infos = self._begin_episodes(observations, dones, infos)
        return observations, rewards.astype(np.float32), dones, infos

    def _begin_episodes(
        self, observations: VecEnvObs, dones: np.ndarray, infos: list[dict[str, Any]]
    ) -> tuple[VecEnvObs, list[dict[str, Any]]]:
        """Return the first observations of the next episodes, and infos of the last step of those that ended."""
        if self._mode is AutoresetMode.SAME_STEP:
            for index in np.flatnonzero(dones):
                reset_info = infos[index]
                last, infos[index] = reset_info.pop("final_obs"), reset_info.pop("final_info", {})
                infos[index]["terminal_observation"] = last
                infos[index]["TimeLimit.truncated"] = reset_info.pop("TimeLimit.truncated")
                if "episode" in reset_info:  # of RecordEpisodeStatistics, for SB3's log
                    infos[index]["episode"] = reset_info.pop("episode")
                self.reset_infos[index] = reset_info
            return observations, infos
        for index in np.flatnonzero(dones):
            infos[index]["terminal_observation"] = _pick(observations, int(index))
        first, reset_infos = self.env.reset(options={"reset_mask": dones})
        for index in np.flatnonzero(dones):
            self.reset_infos[index] = reset_infos[index]  # type: ignore[index]
        return _copy(first), infos

    def close(self) -> None:
        """Close the environments."""
        self.env.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        """
        Render the environments.

        :return: a frame of each
        """
        return self.env.render()  # type: ignore[return-value]

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """
        Read an attribute of the environments.

        :param attr_name: name of the attribute
        :param indices: the environments; None means all
        :return: the values
        :raises AttributeError: if they have no such attribute, or are no Python objects, as those of EnvPool and Playground
        """
        if attr_name == "render_mode":
            values: Sequence[Any] = [self.env.render_mode] * self.num_envs
        else:
            values = self.env.unwrapped.get_attr(attr_name)  # type: ignore[attr-defined]
        return [values[index] for index in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """
        Set an attribute of the environments.

        :param attr_name: name of the attribute
        :param value: its value
        :param indices: the environments; None means all
        """
        values = self.get_attr(attr_name)
        for index in self._get_indices(indices):
            values[index] = value
        self.env.unwrapped.set_attr(attr_name, values)  # type: ignore[attr-defined]

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """
        Call a method of the environments. Gymnasium can only call all of them.

        :param method_name: name of the method
        :param method_args: its arguments
        :param indices: the environments whose values are returned; None means all
        :param method_kwargs: its keyword arguments
        :return: the returned values
        """
        values = self.env.unwrapped.call(method_name, *method_args, **method_kwargs)  # type: ignore[attr-defined]
        return [values[index] for index in self._get_indices(indices)]

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """
        Tell that no wrapper was found, because a vector environment can't be asked. Use ``VecMonitor``, not ``Monitor``.

        :param wrapper_class: the wrapper
        :param indices: the environments; None means all
        :return: False for each environment
        """
        return [False for _ in self._get_indices(indices)]


def _pick(observations: VecEnvObs, index: int) -> Any:
    """Return the observation of one environment, an array or a dictionary of arrays."""
    if isinstance(observations, dict):
        return {key: value[index].copy() for key, value in observations.items()}
    return observations[index].copy()  # type: ignore[union-attr]


def _has_wrapper(env: Any, wrapper_class: type) -> bool:
    return isinstance(env, wrapper_class) or (hasattr(env, "env") and _has_wrapper(env.env, wrapper_class))


def _copy(observations: VecEnvObs) -> VecEnvObs:
    """Copy observations, which a vector environment made with ``copy=False`` overwrites at its next step."""
    if isinstance(observations, dict):
        return {key: value.copy() for key, value in observations.items()}
    return observations.copy()  # type: ignore[union-attr]
