"""
Define FlowRL whose guidance compares the buffer's action and the policy's by one critic, Q_π.

The paper compares Q_β*(s, a) with Q_π(s, a^π). The two are learned differently, one by expectiles, the other by bootstrapping
from the policy. In the defaults Q_β* is nearly always the larger, so that the constraint imitates nearly the whole buffer
(docs/diagnosis.md). By one critic the guidance selects the actions that are better than the policy's.
"""

from collections.abc import Sequence

import torch as th

from sb3_flowrl import FlowRL, losses, update
from sb3_flowrl.buffers import Batch
from sb3_flowrl.execution import MaybeCompiled, autocast
from sb3_flowrl.flow import FlowNoise
from sb3_flowrl.policies import FlowActorCriticPolicy
from sb3_flowrl.update import Gradients, Settings


def actor_gradients(
    policy: FlowActorCriticPolicy,
    settings: Settings,
    batch: Batch,
    noise: FlowNoise,
    q_behavior: th.Tensor,
    spread_coef: th.Tensor | None,
    parameters: Sequence[th.Tensor],
) -> Gradients:
    """
    Differentiate the actor's loss with Q_π(s, a) in the place of Q_β*(s, a).

    :param policy: the networks
    :param settings: the constants of the equations
    :param batch: replay samples
    :param noise: the random numbers of the update
    :param q_behavior: Q_β*(s, a), not used
    :param spread_coef: α, a scalar; ``None`` leaves out the spread of actions
    :param parameters: the parameters of the actor
    :return: the gradients
    """
    with th.no_grad(), autocast(settings.precision, batch.actions.device):
        q_of_buffer = losses.clipped_min(policy.critic.q(batch.observations, batch.actions))
    return update.actor_gradients(policy, settings, batch, noise, q_of_buffer, spread_coef, parameters)


class SelfGuidedFlowRL(FlowRL):
    """
    FlowRL that compares actions by Q_π alone. Takes FlowRL's arguments.
    """

    def _setup_model(self) -> None:
        super()._setup_model()
        self._differentiate_actor = MaybeCompiled(actor_gradients, self.device)
