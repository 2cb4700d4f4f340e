"""
Compute FlowRL's update as plainly as possible: the same numbers, with none of ``sb3_flowrl``'s optimizations.

It stands in for the authors' code in ``bench_update.py``. Each network is a module of its own and is evaluated by itself. Each
loss has its own forward and backward pass and its own plain Adam. The actor's backward pass also computes the critics' weight
gradients, which are not used. Targets are averaged parameter by parameter, and each update reads out its losses.
``tests/integration/test_benchmarks.py`` checks that the numbers are ``FlowRL``'s.
"""

from collections.abc import Sequence
from copy import deepcopy

import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from torch import nn
from torch.nn import functional as F

from sb3_flowrl.flow import FlowNoise, draw_noise


def make_network(
    inputs: int, outputs: int, hidden: Sequence[int], activation: type[nn.Module], linear_ends: bool = False
) -> nn.Sequential:
    """
    Make a multilayer perceptron.

    :param inputs: size of the input
    :param outputs: size of the output
    :param hidden: widths of the hidden layers, each Linear → LayerNorm → activation
    :param activation: the activation
    :param linear_ends: whether the first and the last hidden layer have no activation
    :return: the network, which maps ``(B, inputs)`` to ``(B, outputs)``
    """
    layers: list[nn.Module] = []
    for index, width in enumerate(hidden):
        layers += [nn.Linear(inputs, width), nn.LayerNorm(width)]
        if not (linear_ends and index in (0, len(hidden) - 1)):
            layers.append(activation())
        inputs = width
    layers.append(nn.Linear(inputs, outputs))
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)


class Transcription:
    """
    Train the authors' FlowRL, with their scalar guidance weights (``sb3_flowrl.reference_arguments``).

    :param replay_buffer: where batches come from
    :param net_arch: widths of the hidden layers of the actor (``pi``), and of the critics and V (``qf``)
    :param linear_ends: whether the first and the last hidden layer of the critics and V have no activation
    :param bfloat16: whether the networks run under bfloat16 autocast
    :param flow_steps: N, the number of integration steps
    """

    learning_rate = 3e-4
    gamma = 0.99
    tau = 0.95
    policy_delay = 2
    expectile = 0.9
    w2_coef = 0.1

    def __init__(
        self,
        replay_buffer: ReplayBuffer,
        net_arch: dict[str, list[int]],
        linear_ends: bool = False,
        bfloat16: bool = False,
        flow_steps: int = 1,
    ):
        self.replay_buffer = replay_buffer
        self.device = replay_buffer.device
        self.bfloat16 = bfloat16
        self.flow_steps = flow_steps
        obs_dim, self.action_dim = replay_buffer.obs_shape[0], replay_buffer.action_dim
        hidden = net_arch["qf"]
        self.actor = make_network(obs_dim + self.action_dim + 1, self.action_dim, net_arch["pi"], nn.ELU).to(self.device)
        twin = (make_network(obs_dim + self.action_dim, 1, hidden, nn.GELU, linear_ends) for _ in range(2))
        self.critic = nn.ModuleList(twin).to(self.device)
        self.critic_target = deepcopy(self.critic)
        self.behavior_critic = deepcopy(self.critic)
        self.behavior_critic_target = deepcopy(self.critic)
        self.behavior_value = make_network(obs_dim, 1, hidden, nn.GELU, linear_ends).to(self.device)
        self.actor_optimizer = th.optim.Adam(self.actor.parameters(), self.learning_rate)
        self.critic_optimizer = th.optim.Adam(self.critic.parameters(), self.learning_rate)
        self.behavior_critic_optimizer = th.optim.Adam(self.behavior_critic.parameters(), self.learning_rate)
        self.behavior_value_optimizer = th.optim.Adam(self.behavior_value.parameters(), self.learning_rate)
        self.n_updates = 0
        self.losses: dict[str, float] = {}

    def train(self, gradient_steps: int, batch_size: int = 256) -> None:
        """
        Update all networks.

        :param gradient_steps: number of updates
        :param batch_size: samples in each update
        """
        for _ in range(gradient_steps):
            self._update(batch_size)

    def draw_noise(self, batch_size: int) -> FlowNoise:
        """
        Draw the random numbers of one update.

        :param batch_size: samples in the update
        :return: the random numbers
        """
        return draw_noise(batch_size, self.action_dim, self.device)

    def _autocast(self) -> th.autocast:
        return th.autocast(self.device.type, dtype=th.bfloat16, enabled=self.bfloat16)

    def _velocity(self, t: th.Tensor, obs: th.Tensor, x: th.Tensor) -> th.Tensor:
        return self.actor(th.cat([obs, x, t], dim=1)).float()

    def _act(self, obs: th.Tensor, noise: th.Tensor) -> th.Tensor:
        x = noise.clamp(-1.0, 1.0)
        h = 1.0 / self.flow_steps
        for index in range(self.flow_steps):
            t = th.full((len(x), 1), index * h, device=self.device)
            midpoint = x + 0.5 * h * self._velocity(t, obs, x)
            x = x + h * self._velocity(t + 0.5 * h, obs, midpoint)
        return th.tanh(x)

    @staticmethod
    def _twin_values(twin: nn.ModuleList, obs: th.Tensor, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        inputs = th.cat([obs, actions], dim=1)
        return twin[0](inputs).float(), twin[1](inputs).float()

    def _step(self, name: str, loss: th.Tensor, optimizer: th.optim.Optimizer) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        self.losses[name] = loss.item()

    def _update(self, batch_size: int) -> None:
        batch = self.replay_buffer.sample(batch_size)
        noise = self.draw_noise(batch_size)
        obs, actions, next_obs = batch.observations, batch.actions, batch.next_observations
        discounts = self.gamma * (1.0 - batch.dones)

        # Q_π
        with self._autocast():
            with th.no_grad():
                next_q = th.min(*self._twin_values(self.critic_target, next_obs, self._act(next_obs, noise.next_action)))
                target_q = batch.rewards + discounts * next_q
            q1, q2 = self._twin_values(self.critic, obs, actions)
            critic_loss = F.mse_loss(q1, target_q) + F.mse_loss(q2, target_q)
        self._step("critic", critic_loss, self.critic_optimizer)

        # Q_β*
        with self._autocast():
            with th.no_grad():
                behavior_target = batch.rewards + discounts * self.behavior_value(next_obs).float()
            q1, q2 = self._twin_values(self.behavior_critic, obs, actions)
            behavior_critic_loss = F.mse_loss(q1, behavior_target) + F.mse_loss(q2, behavior_target)
            q_behavior = th.min(q1, q2).detach()
        self._step("behavior_critic", behavior_critic_loss, self.behavior_critic_optimizer)

        # V_β*
        with self._autocast():
            with th.no_grad():
                best_q = th.min(*self._twin_values(self.behavior_critic_target, obs, actions))
            error = best_q - self.behavior_value(obs).float()
            value_loss = (th.where(error < 0, 1.0 - self.expectile, self.expectile) * error**2).mean()
        self._step("behavior_value", value_loss, self.behavior_value_optimizer)

        if self.n_updates % self.policy_delay == 0:
            with self._autocast():
                q_policy = th.min(*self._twin_values(self.critic, obs, self._act(obs, noise.action)))
                advantage = th.relu(q_behavior - q_policy.detach())
                weights = (self.w2_coef * th.exp(advantage - advantage.mean())).clamp(1e-3, 1.0)
                x0 = noise.path.clamp(-1.0, 1.0)
                points = noise.time * actions + (1.0 - noise.time) * x0
                flow_matching_error = F.mse_loss(self._velocity(noise.time, obs, points), actions - x0)
                actor_loss = -q_policy.mean() + weights.mean() * flow_matching_error
            self._step("actor", actor_loss, self.actor_optimizer)
            self._follow(self.critic, self.critic_target)
            self._follow(self.behavior_critic, self.behavior_critic_target)
        self.n_updates += 1

    @th.no_grad()
    def _follow(self, online: nn.Module, target: nn.Module) -> None:
        for parameter, target_parameter in zip(online.parameters(), target.parameters(), strict=True):
            target_parameter.copy_(self.tau * parameter + (1.0 - self.tau) * target_parameter)
