"""
Saving and loading FlowRL: SB3's zip files, exact checkpoints of a run, and files for inference without pickles.
"""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_flowrl import legacy
from sb3_flowrl.checkpoint.random_states import GeneratorStates, generator_states
from sb3_flowrl.checkpoint.run_identity import argument_names
from sb3_flowrl.checkpoint.run_state import load_newest_run, save_run
from sb3_flowrl.checks import ALGORITHM_CHECKS, as_env, check_arguments, check_keywords, without_sde
from sb3_flowrl.execution import CapturedStep, as_saved
from sb3_flowrl.export.safe_policy import load_policy_safe, save_policy_safe
from sb3_flowrl.networks import FlowActor
from sb3_flowrl.policies import FlowActorCriticPolicy

SelfSavable = TypeVar("SelfSavable", bound="SavableAlgorithm")


class ParameterMismatchError(ValueError, RuntimeError):
    """
    Raised when parameters are missing or belong to another kind of model.

    It is also a ``RuntimeError``, because SB3's ``load`` takes any other ``ValueError`` for a sign of an old file.
    """


def _read_attributes(path: str | Path | io.BufferedIOBase) -> dict[str, Any]:
    try:
        saved = legacy.read_attributes(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no file {str(path)!r}, nor one with .zip added to its name.") from None
    if saved and "expectile" not in saved:
        policy_class = saved.get("policy_class")
        module = policy_class.get("__module__") if isinstance(policy_class, dict) else None
        raise ValueError(
            f"{path} holds a model of another algorithm, with a policy of {module or 'an unknown module'}. Load it with the "
            "class that saved it, such as stable_baselines3.SAC."
        )
    return saved


def _choose_buffer_again(
    saved: dict[str, Any], kwargs: Mapping[str, Any], custom_objects: dict[str, Any] | None
) -> dict[str, Any]:
    """Let SB3 choose the replay buffer anew if its own choice does not suit new values of n_steps or gamma."""
    names = ("replay_buffer_class", "replay_buffer_kwargs")
    has_n_steps = saved.get("n_steps", 1) > 1
    if not ("n_steps" in kwargs or (has_n_steps and "gamma" in kwargs)) or not kwargs.keys().isdisjoint(names):
        return {}
    parts = legacy.restore_objects(saved, *names, custom_objects=custom_objects)
    if parts.get("replay_buffer_class") not in (ReplayBuffer, NStepReplayBuffer):
        return {}
    buffer_kwargs = {
        name: value for name, value in (parts.get("replay_buffer_kwargs") or {}).items() if name not in ("n_steps", "gamma")
    }
    return dict(replay_buffer_class=None, replay_buffer_kwargs=buffer_kwargs)


class SavableAlgorithm(OffPolicyAlgorithm):
    """
    The part of ``FlowRL`` that saves and loads.
    """

    policy: FlowActorCriticPolicy
    spread_coef: float | str
    spread_coef_optimizer: th.optim.Optimizer | None
    has_sorted_keys: bool
    _generators_before_step: GeneratorStates | None
    _captured_step: CapturedStep

    @classmethod
    def load(
        cls: type[SelfSavable],
        path: str | Path | io.BufferedIOBase,
        env: GymEnv | str | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> SelfSavable:
        """
        Load a model from a zip file, as in SB3. A model from before the defaults changed keeps its old defaults.

        :param path: path of the file (or a file-like object) to load the model from
        :param env: the new environment to run the loaded model in, or its id (can be None if you only need prediction from a
            trained model)
        :param device: Device on which the code should run.
        :param custom_objects: objects that replace the saved ones, by name
        :param print_system_info: Whether to print system info from the saved model and the current system info
        :param force_reset: Force call to ``reset()`` before training
        :param kwargs: arguments of ``FlowRL`` to change, or attributes of the model
        :return: the model
        :raises TypeError: for a keyword that is neither, or ``custom_objects`` that are not a dict
        :raises FileNotFoundError: if there is no such file
        :raises ValueError: if another algorithm saved the file, if ``policy_kwargs`` differ from the file's, or for
            a ``spread_coef`` that is learned in only one of the file and the arguments
        """
        if not isinstance(custom_objects, Mapping | None):
            raise TypeError(f"custom_objects={custom_objects!r} must be a dict of objects by name, or None.")
        if env is not None:
            env = as_env(env, verbose=0)
        if "policy_kwargs" in kwargs:
            kwargs["policy_kwargs"] = without_sde(kwargs["policy_kwargs"])
        saved = _read_attributes(path)
        if kwargs:
            cls._check_keywords_of_load(kwargs, saved)
        if "stats_window_size" in kwargs:  # the one argument whose attribute has another name
            check_arguments(ALGORITHM_CHECKS, {"stats_window_size": kwargs["stats_window_size"]})
            kwargs["_stats_window_size"] = kwargs.pop("stats_window_size")
        kwargs = {**legacy.missing_attributes(saved), **_choose_buffer_again(saved, kwargs, custom_objects), **kwargs}
        custom_objects = {**legacy.former_objects(saved, custom_objects), **(custom_objects or {})}
        return super().load(path, env, device, custom_objects, print_system_info, force_reset, **kwargs)

    @classmethod
    def _check_keywords_of_load(cls, kwargs: dict[str, Any], saved: dict[str, Any]) -> None:
        arguments = argument_names(cls)
        blank = cls(policy=FlowActorCriticPolicy, env=None, _init_setup_model=False)  # type: ignore[call-arg, arg-type]
        known = {*arguments, *vars(blank), *blank._excluded_save_params(), *saved}
        check_keywords(f"{cls.__name__}.load", kwargs, known)

    def save_checkpoint(self, folder: str | Path, keep: int = 2) -> Path:
        """
        Save everything that training needs to continue bit for bit, including the replay buffer.

        Nothing is lost if the process is killed, even while it saves. To save only the model, use ``save``.

        Call it between calls of ``learn``; ``ResumableCheckpointCallback`` saves within them. The best moment is when every
        environment has just ended an episode, because unfinished episodes can't be saved and are truncated. A checkpoint can't
        hold an environment's state other than its ``np_random``, nor the states of callbacks and loggers.

        :param folder: folder of this run's checkpoints and no other's. Each checkpoint gets its own folder in it
        :param keep: number of newest complete checkpoints to keep
        :return: the new checkpoint's own folder
        :raises CheckpointError: if the checkpoint can't be written, or networks or optimizers hold values that are not finite.
            Older checkpoints stay as they are
        :raises ValueError: if the model has no environment, or ``keep`` is not a positive integer
        """
        return save_run(self, folder, keep, self._generators_before_step)

    @classmethod
    def load_checkpoint(
        cls: type[SelfSavable],
        folder: str | Path,
        env: GymEnv | str,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> SelfSavable:
        """
        Load the newest complete checkpoint of a run.

        Continue training with ``learn(..., reset_num_timesteps=False)``. A checkpoint holds pickles, which can run any code:
        load only checkpoints that you trust.

        :param folder: folder of the run's checkpoints
        :param env: the environment, made and wrapped as in the run. VecNormalize keeps the options of the given environment,
            and gets the statistics of the run
        :param device: Device on which the code should run.
        :param custom_objects: as in ``load``
        :param kwargs: arguments that the run's model was made with. They change nothing, but one that differs from the run's
            is an error, so that no other run is continued by mistake. Only ``verbose`` and ``tensorboard_log`` may differ
        :return: the model
        :raises CheckpointError: if there is no complete checkpoint, or something in it can't be loaded here
        :raises ValueError: if the environment or an argument is not the run's
        """
        return load_newest_run(cls, folder, env, device, custom_objects, kwargs)

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        assert self.env is not None  # for mypy
        if isinstance(self.env.unwrapped, DummyVecEnv):  # asking other processes at each step would be slow
            self._generators_before_step = generator_states(self.env)
        return super()._sample_action(learning_starts, action_noise, n_envs)

    def save_policy_safe(self, path: str | Path) -> None:
        """
        Save what inference needs to a file without pickles, see ``sb3_flowrl.export.save_policy_safe``.

        :param path: file to write, usually ``*.safetensors``
        :raises ValueError: for what such a file can't hold, such as a custom features extractor
        :raises ImportError: if safetensors is not installed
        """
        save_policy_safe(self, path)

    @staticmethod
    def load_policy_safe(path: str | Path, device: th.device | str = "auto") -> FlowActor:
        """
        Load a policy for inference without unpickling anything, see ``sb3_flowrl.export.load_policy_safe``.

        :param path: file that ``save_policy_safe`` wrote
        :param device: Device on which the policy should be loaded.
        :return: the actor, with SB3's ``predict``
        :raises PolicyFileError: if ``save_policy_safe`` did not write the file, or if it has changed since
        :raises ImportError: if safetensors is not installed
        """
        return load_policy_safe(path, device)

    def get_parameters(self) -> dict[str, dict[str, Any]]:
        """
        Return the parameters of the networks and the states of the optimizers, as in SB3.

        :return: state dicts by the name of the object
        """
        return {name: as_saved(state_dict) for name, state_dict in super().get_parameters().items()}

    def set_parameters(
        self, load_path_or_dict: str | dict[str, Any], exact_match: bool = True, device: th.device | str = "auto"
    ) -> None:
        """
        Load parameters from a zip file or a nested dictionary, as in SB3.

        :param load_path_or_dict: Location of the saved data (path or file-like, see ``save``), or a nested dictionary
            containing nn.Module parameters used by the policy.
        :param exact_match: If True, the given parameters should include parameters for each module and each of their
            parameters, otherwise raises an Exception.
        :param device: Device on which the code should run.
        :raises ValueError: if names are missing, if ``spread_coef`` is learned in only one of the two models, or if a file's
            networks take the keys of Dict observations in another order
        """
        params = load_path_or_dict
        if not isinstance(params, dict):
            if (
                legacy.has_unsorted_keys(self.observation_space)
                and legacy.was_made_with_sorted_keys(params) != self.has_sorted_keys
            ):
                raise ValueError(
                    "The networks of old versions of sb3_flowrl take the keys of Dict observations in sorted order. Either "
                    "this model or the file is from such a version, but not both. Load the file with FlowRL.load instead."
                )
            _, params, _ = load_from_zip_file(params, device=device, load_data=False)
        missing = [name for name in self._get_torch_save_params()[0] if name not in params]
        if exact_match and missing and missing != ["spread_coef_optimizer"]:
            raise ParameterMismatchError(
                f"Names of parameters do not match this model's: missing {', '.join(map(repr, missing))}, given "
                f"{', '.join(map(repr, params)) or 'none'}. Pass exact_match=False to set only those that are given."
            )
        is_learned, was_learned = self.spread_coef_optimizer is not None, "spread_coef_optimizer" in params
        if (was_learned and not is_learned) or (exact_match and is_learned and not was_learned):
            raise ParameterMismatchError(
                f"The parameters are from a model whose spread_coef is {'learned' if was_learned else 'not learned'}, but "
                f"this model has spread_coef={self.spread_coef!r}. Load them into a model "
                f'{"with, for example," if was_learned else "without"} spread_coef="auto".'
            )
        params = legacy.stacked_parameters(self.policy, params)
        super().set_parameters(params, exact_match=exact_match, device=device)
        if (
            "actor" in params
            and self.policy.averaged_actor is not None
            and params.keys().isdisjoint({"policy", "averaged_actor"})
        ):
            self.policy.averaged_actor.load_state_dict(self.policy.actor.state_dict())  # which `predict` plays
        self._captured_step.reset()  # the optimizers' states are in other tensors now

    def _excluded_save_params(self) -> list[str]:
        aliases = ["actor", "averaged_actor", "critic", "critic_target"]
        aliases += ["behavior_critic", "behavior_critic_target", "behavior_value"]
        own = [
            "_generators_before_step",
            "_differentiate_values",
            "_differentiate_actor",
            "_captured_step",
            "_diverged",
            "_run_identity",
            "lr_schedule",  # made from `learning_rate`
        ]
        return [*super()._excluded_save_params(), *aliases, *own]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        optimizers = [f"{name}.optimizer" for name in ("actor", "critic", "behavior_critic", "behavior_value")]
        if self.spread_coef_optimizer is None:
            return ["policy", *optimizers], []
        return ["policy", *optimizers, "spread_coef_optimizer"], ["log_spread_coef"]
