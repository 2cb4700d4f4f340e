"""
The authors' numbers, and how they are fed through ``FlowRL.train()``.

``GOLDEN.md`` beside the data tells what each array is. A set is one ``.npz`` file; ``FLOWRL_GOLDEN_DIR`` names the folder.
"""

import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import ReplayBufferSamples

from sb3_flowrl import FlowRL, flowrl, losses, reference_arguments, update
from sb3_flowrl.flow import FlowNoise

GOLDEN_DIR = Path(os.environ.get("FLOWRL_GOLDEN_DIR", Path(__file__).parent / "data"))
N_UPDATES = 4

#: The authors' names of our networks.
NETWORKS = {
    "critic": "critic",
    "critic_target": "critic_target",
    "behavior_critic": "critic_buffer",
    "behavior_critic_target": "critic_target_buffer",
    "behavior_value": "V_critic_buffer",
    "actor": "policy",
}
_LAYERS = ("block.0", "block.1", "block.2", "block.4", "block.5", "block.7", "block.8")
#: The authors' names of a network's layers that have parameters, in the order of ours.
LAYERS = {
    "critic": [f"Q{i}_{layer}" for i in (1, 2) for layer in ("input", *_LAYERS, "output")],
    "behavior_value": ["v_input", *_LAYERS, "v_output"],
    "actor": ["linear1", "LayerNorm", "linear2", "LayerNorm2", "linear3"],
}


class SpacesOnlyEnv(gym.Env):
    """An environment that is only asked for its spaces."""

    def __init__(self, obs_dim: int, low: np.ndarray, high: np.ndarray):
        self.observation_space = spaces.Box(-np.inf, np.inf, (obs_dim,), dtype=np.float32)
        self.action_space = spaces.Box(low, high, dtype=np.float32)


def golden_sets() -> list[Path]:
    return sorted(GOLDEN_DIR.glob("*.npz"))


def authors_names(network: str) -> list[str]:
    """The authors' names of a network's parameters, in the order of ``parameters()`` of ours."""
    layers = LAYERS["critic" if "critic" in network else network]
    return [f"{NETWORKS[network]}.{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]


def named_parameters(model: FlowRL, network: str) -> dict[str, th.Tensor]:
    """Our parameters of a network under the authors' names: of stacked networks, views of each."""
    return named_tensors(network, getattr(model, network).parameters())


def named_tensors(network: str, tensors: Iterable[th.Tensor]) -> dict[str, th.Tensor]:
    """What belongs to our parameters of a network, such as their gradients, under the authors' names."""
    tensors = [tensor.detach() for tensor in tensors]
    if network != "actor":
        tensors = [tensor[index] for index in range(len(tensors[0])) for tensor in tensors]
    return dict(zip(authors_names(network), tensors, strict=True))


class GoldenRun:
    """
    The four updates of one golden set, done by ``FlowRL.train()`` on the authors' weights, batches and random numbers.

    :param data: the arrays of the set
    :param per_sample: False for the authors' scalar weights, True for the run under ``ps/``
    :param options: arguments of ``FlowRL`` besides those of the set
    """

    def __init__(self, data: dict[str, np.ndarray], per_sample: bool, **options):
        self.data = data
        #: What passed through the equations, by update and name: intermediates, and gradients as the optimisers used them
        self.seen: list[dict[str, np.ndarray]] = []
        self.model = self._make_model(per_sample, options)
        for network in NETWORKS:
            for name, parameter in named_parameters(self.model, network).items():
                parameter.copy_(th.as_tensor(data[f"init/{name}"]))

    def _make_model(self, per_sample: bool, options: dict) -> FlowRL:
        meta = {key.removeprefix("meta/"): value for key, value in self.data.items() if key.startswith("meta/")}
        hidden = int(meta["hidden"])
        arguments = reference_arguments()
        arguments.update(
            env=SpacesOnlyEnv(int(meta["obs"]), meta["low"], meta["high"]),
            buffer_size=1,
            learning_rate=float(meta["lr"]),
            gamma=float(meta["gamma"]),
            tau=float(meta["tau"]),
            policy_delay=int(meta["target_update_interval"]),
            flow_steps=int(meta["steps"]),
            expectile=float(meta["quantile"]),
            w2_coef=float(meta["lamda"]),
            per_sample=per_sample,
            precision="float32",
            device="cpu",
        )
        arguments.update(options)
        arguments["policy_kwargs"].update(
            net_arch=dict(pi=[hidden] * 2, qf=[hidden] * 4),
            optimizer_kwargs=dict(
                betas=(float(meta["adam_beta1"]), float(meta["adam_beta2"])), eps=float(meta["adam_eps"]), fused=True
            ),
        )
        model = FlowRL("MlpPolicy", **arguments)
        model.set_logger(Logger(folder=None, output_formats=[]))
        return model

    def tensor(self, update: int, name: str) -> th.Tensor:
        return th.as_tensor(self.data[f"u{update}/{name}"], device=self.model.device)

    def batch(self, update: int) -> ReplayBufferSamples:
        return ReplayBufferSamples(
            observations=self.tensor(update, "obs"),
            actions=self.tensor(update, "act"),
            next_observations=self.tensor(update, "next_obs"),
            dones=1.0 - self.tensor(update, "mask").unsqueeze(1),
            rewards=self.tensor(update, "rew").unsqueeze(1),
        )

    def noise(self, update: int) -> FlowNoise:
        next_action = self.tensor(update, "noise_next_raw")
        has_actor_step = f"u{update}/t" in self.data
        nothing = th.full_like(next_action, th.nan)  # reaches a result only if the actor steps where it should not
        return FlowNoise(
            path=self.tensor(update, "noise_action0_raw"),
            next_action=next_action,
            action=self.tensor(update, "noise_pi_raw") if has_actor_step else nothing,
            time=self.tensor(update, "t") if has_actor_step else nothing[:, :1],
        )

    def run(self, monkeypatch: pytest.MonkeyPatch, calls: int = N_UPDATES, until: int = N_UPDATES) -> "GoldenRun":
        """
        :param calls: in how many calls of ``train()`` the updates are done
        :param until: how many updates are done
        """
        size = int(self.data["meta/batch"])
        updates = iter(range(until))
        current = {}

        def sample(n_samples, env=None):
            # dealt out to the updates in turns
            batches = [self.batch(self.model._n_updates + index) for index in range(n_samples // size)]
            fields = ([field for field in each if field is not None] for each in zip(*batches, strict=True))
            return ReplayBufferSamples(*(th.stack(field, dim=1).flatten(0, 1) for field in fields if field))

        def draw_noise(batch_size, action_dim, device):
            current["u"] = next(updates)
            self.seen.append({})
            return self.noise(current["u"])

        with monkeypatch.context() as patch:
            patch.setattr(self.model.replay_buffer, "sample", sample)
            patch.setattr(flowrl, "draw_noise", draw_noise)
            if self.model.compile is not True:  # which would make spies part of what is compiled
                self._spy_on_equations(patch)
            self._spy_on_gradients()
            for _ in range(calls):
                self.model.train(gradient_steps=until // calls, batch_size=size)
        return self

    def _spy_on_equations(self, patch: pytest.MonkeyPatch) -> None:
        names_in_order = {
            "clipped_min": ["min_next_q", "v_target", "q_buffer", "min_q_pi"],
            "bootstrap_target": ["target_q", "buffer_target"],
            "critic_loss": ["critic_loss", "critic_buffer_loss"],
            "expectile_loss": ["v_loss"],
            "flow_matching_error": ["cfm_loss_per_sample"],
            "negative_lagrangian": ["policy_loss"],
        }
        for function, names in names_in_order.items():
            patch.setattr(losses, function, self._spy(getattr(losses, function), names))
        patch.setattr(update, "guidance_weights", self._spy(update.guidance_weights, ["weights"]))
        patch.setattr(self.model.actor, "flow", self._spy(self.model.actor.flow, ["next_action", "pi"]))

    def _spy(self, function, names: list[str]):
        calls: dict[int, int] = defaultdict(int)  # of each update

        def wrapper(*args, **kwargs):
            result = function(*args, **kwargs)
            self.seen[-1][names[calls[len(self.seen)]]] = result.detach().cpu().numpy().copy()
            calls[len(self.seen)] += 1
            return result

        return wrapper

    def _spy_on_gradients(self) -> None:
        for network in ("critic", "behavior_critic", "behavior_value", "actor"):

            def record(optimizer, args, kwargs, network=network):
                gradients = named_tensors(network, [p.grad for p in getattr(self.model, network).parameters()])
                for name, gradient in gradients.items():
                    self.seen[-1][f"grad/{name}"] = gradient.cpu().numpy().copy()

            getattr(self.model, network).optimizer.register_step_pre_hook(record)

    def parameters(self) -> dict[str, np.ndarray]:
        return {
            name: parameter.cpu().numpy().copy()
            for network in NETWORKS
            for name, parameter in named_parameters(self.model, network).items()
        }


def load_golden_set(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as arrays:
        return {key: arrays[key] for key in arrays.files}
