"""
Define FlowRL with a categorical critic: Q_π is the mean of a distribution of returns over fixed values, the atoms.

The distribution is learned by cross-entropy, whose gradient is bounded, instead of by squared errors. Sources: C51 (Bellemare
et al., ICML 2017) for the distribution and the projection of its target; XQC (ICLR 2026) for the atoms and the choice of the
twin. It needs returns inside the range of the atoms, hence ``scale_rewards=True``.

B is the batch size, A the number of action dimensions and K the number of atoms.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from torch.nn import functional as F

from sb3_flowrl import FlowRL, losses, update
from sb3_flowrl.buffers import Batch
from sb3_flowrl.execution import MaybeCompiled, autocast
from sb3_flowrl.flow import FlowNoise
from sb3_flowrl.networks import FlowCritic
from sb3_flowrl.policies import FlowActorCriticPolicy
from sb3_flowrl.reward_scale import RETURN_BOUND

#: Number of atoms, evenly spaced from minus to plus :data:`~sb3_flowrl.reward_scale.RETURN_BOUND`.
N_ATOMS = 101


def mean_value(logits: th.Tensor, atoms: th.Tensor) -> th.Tensor:
    """
    Compute the mean of a categorical distribution: Q = Σ_k p_k z_k.

    :param logits: of each atom, ``(..., K)``
    :param atoms: z, ``(K,)``
    :return: ``(..., 1)``
    """
    return (logits.softmax(dim=-1) * atoms).sum(dim=-1, keepdim=True)


def pessimistic(logits: th.Tensor, atoms: th.Tensor) -> th.Tensor:
    """
    Choose for each sample the distribution of the twin with the smaller mean.

    :param logits: of two networks, ``(2, B, K)``
    :param atoms: z, ``(K,)``
    :return: its logits, ``(B, K)``
    """
    means = mean_value(logits, atoms)
    return th.where(means[0] <= means[1], logits[0], logits[1])


def project(returns: th.Tensor, probabilities: th.Tensor, atoms: th.Tensor) -> th.Tensor:
    """
    Project a distribution of returns on the atoms: each return's probability is shared by the two atoms beside it.

    :param returns: y_k, ``(B, K)``; beyond the range of the atoms they count as its end
    :param probabilities: p_k, ``(B, K)``
    :param atoms: z, ``(K,)``, evenly spaced
    :return: probabilities of the atoms, ``(B, K)``, with the same mean unless a return was beyond the range
    """
    distance = atoms[1] - atoms[0]
    places = ((returns.clamp(atoms[0], atoms[-1]) - atoms[0]) / distance).clamp(0, len(atoms) - 1)
    below = places.floor().clamp(max=len(atoms) - 2)
    share = places - below
    projected = th.zeros_like(probabilities).scatter_add(1, below.long(), probabilities * (1.0 - share))
    return projected.scatter_add(1, below.long() + 1, probabilities * share)


def cross_entropy(logits: th.Tensor, targets: th.Tensor) -> th.Tensor:
    """
    Compute the cross-entropy to the target distribution, summed over the Q-networks of a critic.

    :param logits: of each network, ``(n_critics, B, K)``
    :param targets: probabilities, ``(B, K)``, without gradient
    :return: Σ_i mean(-Σ_k p_k log q_ik), a scalar
    """
    return -(targets * F.log_softmax(logits, dim=-1)).sum(dim=-1).mean(dim=1).sum()


class CategoricalCritic(FlowCritic):
    """
    Twin Q-networks with one output for each atom. Takes FlowCritic's arguments, by name.

    :raises ValueError: if the networks are not normalized by batch
    """

    n_outputs = N_ATOMS
    atoms: th.Tensor

    def __init__(self, **kwargs: Any):
        if not kwargs["batch_norm"]:
            raise ValueError("batch_norm=False must be True: the categorical critic has no target network.")
        super().__init__(**kwargs)
        self.register_buffer("atoms", th.linspace(-RETURN_BOUND, RETURN_BOUND, N_ATOMS))

    def q(self, obs: PyTorchObs, actions: th.Tensor) -> th.Tensor:
        """
        Estimate the values of actions: the means of the distributions.

        :param obs: observations, ``(B, *obs_shape)``
        :param actions: actions in [-1, 1], ``(B, A)``
        :return: values of each critic network, ``(n_critics, B, 1)``
        """
        return mean_value(super().q(obs, actions), self.atoms)


class CategoricalPolicy(FlowActorCriticPolicy):
    """
    FlowRL's policy with a categorical Q_π; takes the same arguments.
    """

    critic_class = CategoricalCritic


def value_loss(
    policy: FlowActorCriticPolicy, settings: update.Settings, batch: Batch, noise: FlowNoise, learns_behavior: bool
) -> tuple[th.Tensor, update.Terms, th.Tensor | None]:
    """
    Compute the cross-entropy of Q_π and FlowRL's losses of Q_β* and V_β*.

    :param policy: the networks, with a :class:`CategoricalCritic`
    :param settings: the constants of the equations
    :param batch: replay samples
    :param noise: the random numbers of the update
    :param learns_behavior: whether to include the losses of Q_β* and V_β*
    :return: as :func:`sb3_flowrl.update.value_loss`
    """
    critic = policy.critic
    assert isinstance(critic, CategoricalCritic) and batch.discounts is not None
    with autocast(settings.precision, batch.actions.device):
        with th.no_grad():
            next_actions = policy.actor.act(batch.next_observations, noise.next_action)
        logits, next_logits = critic.joint_q(batch.observations, batch.actions, batch.next_observations, next_actions)
    next_probabilities = pessimistic(next_logits.detach(), critic.atoms).softmax(dim=-1)
    returns = losses.bootstrap_target(batch.rewards, batch.dones, batch.discounts, critic.atoms)
    terms = {"critic_loss": cross_entropy(logits, project(returns, next_probabilities, critic.atoms))}
    if not learns_behavior:
        return terms["critic_loss"], terms, None
    behavior_terms, q_behavior = update.behavior_losses(policy, settings, batch)
    terms |= behavior_terms
    return th.stack(list(terms.values())).sum(), terms, q_behavior


def value_gradients(
    policy: FlowActorCriticPolicy,
    settings: update.Settings,
    batch: Batch,
    noise: FlowNoise,
    learns_behavior: bool,
    parameters: Sequence[th.Tensor],
) -> tuple[update.Gradients, th.Tensor | None]:
    """
    Differentiate :func:`value_loss`, which receives all other arguments.

    :param parameters: the parameters of the value functions
    :return: the gradients, and the clipped Q_β*(s, a), ``(B, 1)``
    """
    loss, terms, q_behavior = value_loss(policy, settings, batch, noise, learns_behavior)
    return update.differentiate(loss, terms, parameters), q_behavior


class CategoricalFlowRL(FlowRL):
    """
    FlowRL with a categorical critic Q_π. Takes FlowRL's arguments.

    :raises ValueError: unless rewards are scaled, and Q_π is normalized by batch
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": CategoricalPolicy}

    def _setup_model(self) -> None:
        if not self.scale_rewards:
            raise ValueError("scale_rewards=False must be True: the atoms of the categorical critic are scaled returns.")
        super()._setup_model()
        self._differentiate_values = MaybeCompiled(value_gradients, self.device)
