"""
The policy as an ONNX file, for inference without PyTorch.

The file maps observations, and noise unless it is deterministic, to actions. It includes all preprocessing.
"""

import importlib
import os
import warnings
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_flowrl.export.safe_policy import inference_actor, write_atomically
from sb3_flowrl.networks import FlowActor

#: Largest difference allowed between the file's and ``predict``'s actions, scaled to [-1, 1]. Float32 operations in another
#: order round differently.
TOLERANCE = 1e-5
#: Bounds of observations beyond this are taken for none.
WIDEST_BOUND = 1e6


class _Inference(nn.Module):
    """
    Everything that ``predict`` does, as a function of tensors.

    :param actor: the actor
    """

    action_low: th.Tensor
    action_high: th.Tensor

    def __init__(self, actor: FlowActor):
        super().__init__()
        assert isinstance(actor.action_space, spaces.Box)  # for mypy
        self.actor = actor
        self.register_buffer("action_low", th.as_tensor(actor.action_space.low, device=actor.device))
        self.register_buffer("action_high", th.as_tensor(actor.action_space.high, device=actor.device))

    def forward(self, observation: PyTorchObs, noise: th.Tensor | None = None) -> th.Tensor:
        """
        Compute actions.

        :param observation: observations, ``(B, *obs_shape)``
        :param noise: base samples, ``(B, A)``; None and zeros give the deterministic action
        :return: actions in the action space, ``(B, *action_shape)``
        """
        low, high = self.action_low, self.action_high
        features = self.actor.features(observation)
        if noise is None:
            noise = features.new_zeros(features.shape[0], self.actor.action_dim)
        scaled = self.actor.flow(features, noise).reshape(-1, *low.shape)
        return (low + 0.5 * (scaled + 1.0) * (high - low)).clamp(low, high)  # as BoundedActionPolicy.unscale_action does


def export_onnx(
    policy_or_model: BasePolicy | BaseAlgorithm, path: str | os.PathLike[str], deterministic: bool = False
) -> None:
    """
    Write the policy as an ONNX file.

    Its inputs are:

    - ``observation``, ``(B, *obs_shape)``, of the observation space's type, but float32 for floating-point numbers. A Dict
      space has one such input under each of its keys instead.
    - ``noise``, ``(B, A)``, float32. Pass standard normal samples for stochastic actions, or zeros for deterministic ones.

    Its output is ``action``, ``(B, *action_shape)``.

    :param policy_or_model: a ``FlowRL`` model, its policy, or its actor
    :param path: file to write. An existing file is replaced completely or not at all
    :param deterministic: whether to write a file without the input ``noise``, which gives the deterministic action only
    :raises ValueError: for a model with VecNormalize, and for a Dict space with a key that the graph uses, such as "noise"
    :raises ImportError: if onnx or onnxscript is not installed
    """
    _import("onnx")
    _import("onnxscript")  # torch writes ONNX with it
    actor = inference_actor(policy_or_model)
    observation, dynamic = _example(actor)
    names = list(observation) if isinstance(observation, dict) else ["observation"]
    _check_keys(names, {"noise"})
    noise = None if deterministic else th.zeros(2, actor.action_dim, device=actor.device, dtype=th.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own parts, and that all inputs share one batch axis
        program = th.onnx.export(
            _Inference(actor).eval(),
            (observation, noise),
            input_names=names if deterministic else [*names, "noise"],
            output_names=["action"],
            dynamic_shapes=(dynamic, None if deterministic else {0: "batch"}),
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # for mypy
    model = program.model_proto  # each access makes a new one
    graph = model.graph
    _check_keys(names, {tensor.name for tensor in graph.initializer}.union(*(node.output for node in graph.node)))
    write_atomically(path, model.SerializeToString())


def _check_keys(names: list[str], used: set[str]) -> None:
    if taken := sorted(used.intersection(names)):
        raise ValueError(f"The observation space has the keys {taken} that the ONNX graph uses itself. Rename these keys.")


def largest_difference(policy_or_model: BasePolicy | BaseAlgorithm, path: str | os.PathLike[str]) -> float:
    """
    Compare an ONNX file with its policy on 1000 random observations, with and without noise if the file takes noise.

    :param policy_or_model: the ``FlowRL`` model, policy or actor that the file was written from, on the CPU
    :param path: the ONNX file
    :return: the largest absolute difference between the file's and ``predict``'s actions, both scaled to [-1, 1]
    :raises ImportError: if onnxruntime is not installed
    """
    actor, session = inference_actor(policy_or_model), open_session(path)
    takes_noise = any(node.name == "noise" for node in session.get_inputs())
    differences = []
    for seed in range(10):
        observation = sample_observations(actor.observation_space, 100)
        for deterministic in (True, False) if takes_noise else (True,):
            with th.random.fork_rng(devices=[]):
                th.manual_seed(seed)
                expected, _ = actor.predict(observation, deterministic=deterministic)
                th.manual_seed(seed)  # to draw the noise that predict drew
                noise = (th.zeros if deterministic else th.randn)(100, actor.action_dim, dtype=th.float32)
            actions = run_session(session, observation, noise.numpy() if takes_noise else None)
            differences.append(actor.scale_action(actions) - actor.scale_action(expected))
    return float(np.abs(differences).max())


def _example(actor: FlowActor) -> tuple[Any, Any]:
    """Return two observations (the exporter would take a batch size of one for the only one) and their dynamic axes."""

    def example(space: spaces.Space[Any]) -> th.Tensor:
        return th.as_tensor(np.zeros((2, *(space.shape or ())), dtype=_input_type(space.dtype)), device=actor.device)

    space = actor.observation_space
    if not isinstance(space, spaces.Dict):
        return example(space), {0: "batch"}
    return {key: example(part) for key, part in space.spaces.items()}, {key: {0: "batch"} for key in space.spaces}


def _input_type(dtype: np.dtype | None) -> np.dtype:
    """Return float32 for all floating-point types, because this is what the networks see, and other types as they are."""
    return np.dtype(np.float32) if np.issubdtype(dtype, np.floating) else np.dtype(dtype)


def sample_observations(space: spaces.Space[Any], n: int) -> Any:
    """
    Sample random observations.

    :param space: the observation space
    :param n: number of observations
    :return: observations, ``(n, *obs_shape)``, or a dict of these for a Dict space
    """
    if isinstance(space, spaces.Dict):
        return {key: sample_observations(part, n) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        # Bounds such as the largest float32 stand for none; from inside them no network gives a finite action
        low = np.where(space.low < -WIDEST_BOUND, -np.inf, space.low)
        space = spaces.Box(low, np.where(space.high > WIDEST_BOUND, np.inf, space.high), dtype=space.dtype.type)
    return np.stack([space.sample() for _ in range(n)])


def open_session(path: str | os.PathLike[str]) -> Any:
    """
    Open an ONNX file on the CPU.

    :param path: the ONNX file
    :return: onnxruntime's session
    :raises ImportError: if onnxruntime is not installed
    """
    onnxruntime = _import("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # more threads only get in each other's way with such small networks
    return onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])


def run_session(session: Any, observation: Any, noise: np.ndarray | None = None) -> np.ndarray:
    """
    Compute actions with an ONNX file.

    :param session: the file's session, see :func:`open_session`
    :param observation: observations, ``(B, *obs_shape)``
    :param noise: base samples, ``(B, A)``, if the file takes them
    :return: actions, ``(B, *action_shape)``
    """
    inputs = observation if isinstance(observation, dict) else {"observation": observation}
    inputs = {name: value.astype(_input_type(value.dtype)) for name, value in inputs.items()}
    return session.run(["action"], inputs if noise is None else {**inputs, "noise": noise})[0]


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f'Exporting needs {name}: pip install "sb3-flowrl[onnx]"') from error
