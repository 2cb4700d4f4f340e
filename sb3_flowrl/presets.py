"""
Three sets of arguments: exactly the paper, the authors' code, and the defaults before 0.2.

Pass one with ``**``, and override any argument: ``FlowRL("MlpPolicy", env, **reference_arguments(precision="float32"))``.
D1 to D11 are the differences between paper and code. The documentation lists them, with the argument that controls each.
"""

from typing import Any

from torch import nn

from sb3_flowrl.buffers import RecencyReplayBuffer
from sb3_flowrl.guidance import uncapped_guidance


def paper_arguments(action_dim: int, **overrides: Any) -> dict[str, Any]:
    """
    Return the arguments that make FlowRL exactly the paper's algorithm.

    Where the paper gives no value (target rate, first random steps), the authors' constants are used. Two warnings: the
    uncapped weights can overflow when values are large, and an actor step at every update costs more than the defaults.

    :param action_dim: number of action dimensions A. The paper's squared norm is a sum over them and ours a mean, so that λ
        is A times as large
    :param overrides: arguments of ``FlowRL`` that replace the paper's or are added. Entries of ``policy_kwargs`` replace
        single entries
    :return: keyword arguments of ``FlowRL``
    """
    arguments: dict[str, Any] = dict(
        learning_rate=3e-4,
        buffer_size=1_000_000,
        learning_starts=5_000,  # authors' code
        batch_size=256,
        tau=0.95,  # D6, authors' code
        gamma=0.99,
        replay_buffer_class=None,  # D7
        policy_delay=1,  # D8
        delay_behavior=False,
        actor_tau=None,
        flow_steps=1,
        ode_solver="midpoint",
        expectile=0.9,
        w2_coef=0.1 * action_dim,  # D11
        guidance=uncapped_guidance,  # D2
        per_sample=True,  # D1
        matching="action",  # D5
        noise_clip=None,  # D4
        spread_coef=0.0,
        precision="float32",  # D10
        policy_kwargs=dict(
            net_arch=dict(pi=[512, 512], qf=[512, 512, 512]),
            activation_fn=dict(pi=nn.ELU, qf=nn.Mish),  # D3
            batch_norm=False,
            optimizer_kwargs=dict(fused=True),
        ),
    )
    return _override(arguments, overrides)


def reference_arguments(**overrides: Any) -> dict[str, Any]:
    """
    Return the arguments that make FlowRL the authors' code (bytedance/FlowRL, commit e26279b).

    The authors use bfloat16 autocast on CUDA only. On a CPU, override it with ``precision="float32"``.

    :param overrides: as for :func:`paper_arguments`
    :return: keyword arguments of ``FlowRL``
    """
    arguments: dict[str, Any] = dict(
        learning_rate=3e-4,
        buffer_size=1_000_000,
        learning_starts=5_000,
        batch_size=256,
        tau=0.95,  # D6
        gamma=0.99,
        replay_buffer_class=RecencyReplayBuffer,  # D7
        policy_delay=2,  # D8
        delay_behavior=False,
        actor_tau=None,
        flow_steps=1,
        ode_solver="midpoint",
        expectile=0.9,
        w2_coef=0.1,  # D11
        guidance="reference",  # D2
        per_sample=False,  # D1
        matching="action",  # D5
        noise_clip=1.0,  # D4
        spread_coef=0.0,
        precision="bfloat16",  # D10
        policy_kwargs=dict(
            net_arch=dict(pi=[512, 512], qf=[512, 512, 512, 512]),
            activation_fn=dict(pi=nn.ELU, qf=nn.GELU),  # D3
            batch_norm=False,
            critic_layout="reference",
            optimizer_kwargs=dict(fused=True),
        ),
    )
    return _override(arguments, overrides)


def v0_1_arguments(**overrides: Any) -> dict[str, Any]:
    """
    Return the defaults of FlowRL 0.1, with which the study ``learning`` was made.

    :param overrides: as for :func:`paper_arguments`
    :return: keyword arguments of ``FlowRL``
    """
    arguments: dict[str, Any] = dict(
        learning_rate=1e-3,
        buffer_size=1_000_000,
        learning_starts=5_000,
        batch_size=256,
        tau=0.95,
        gamma=0.99,
        policy_delay=2,
        delay_behavior=False,
        actor_tau=None,
        flow_steps=1,
        ode_solver="midpoint",
        expectile=0.9,
        w2_coef=0.1,
        guidance="paper",
        per_sample=True,
        matching="action",
        noise_clip=1.0,
        spread_coef="auto",
        target_spread=0.16,
        precision="float32",
        policy_kwargs=dict(
            net_arch=[256, 256],
            activation_fn=nn.ReLU,
            batch_norm=True,
            optimizer_kwargs=dict(betas=(0.5, 0.999), fused=True),
        ),
    )
    return _override(arguments, overrides)


def _override(arguments: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    policy_kwargs = {**arguments["policy_kwargs"], **(overrides.get("policy_kwargs") or {})}
    return {**arguments, **overrides, "policy_kwargs": policy_kwargs}
