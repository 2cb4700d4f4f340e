"""
Define FlowRL with a critic Q_π whose hidden units keep weights of norm 1.

Batch normalization makes a layer's output independent of the size of the layer's weights, but the larger they grow, the less
an optimizer step turns them. Projecting them back after each step keeps the learning rate what it is. Source: XQC (ICLR 2026).
"""

import torch as th

from sb3_flowrl import FlowRL
from sb3_flowrl.buffers import Batch
from sb3_flowrl.stacked import StackedLinear, StackedMLP
from sb3_flowrl.update import Terms


def project_to_unit_norm(networks: StackedMLP) -> None:
    """
    Divide the weights of each hidden unit by their norm, in place. The output layer stays as it is.

    :param networks: the networks of a critic
    """
    hidden = [layer for layer in networks if isinstance(layer, StackedLinear)][:-1]
    with th.no_grad():
        for layer in hidden:
            layer.weight.div_(layer.weight.norm(dim=-1, keepdim=True))


class UnitNormFlowRL(FlowRL):
    """
    FlowRL that projects the weights of Q_π's hidden units to norm 1 after each update. Takes FlowRL's arguments.

    :raises ValueError: if Q_π is not normalized by batch, since the projection would then change its values
    """

    def _setup_model(self) -> None:
        super()._setup_model()
        if not self.policy.batch_norm:
            raise ValueError("batch_norm=False must be True: without it unit-norm weights change the values of Q_π.")
        project_to_unit_norm(self.critic.networks)

    def _gradient_step(self, batch: Batch, steps_actor: bool, diverged: th.Tensor) -> Terms:
        terms = super()._gradient_step(batch, steps_actor, diverged)
        project_to_unit_norm(self.critic.networks)
        return terms
