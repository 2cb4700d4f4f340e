"""
FlowRL's search space in Optuna, for tuning with rl_zoo3 (``python -m rl_zoo3.train --algo flowrl -optimize``).
"""

import os
import platform
from typing import Any

import optuna
from torch import nn

#: Q_β* and V_β* are half as wide as Q_π, as by default.
NET_ARCHS = {
    "small": dict(pi=[64, 64], qf=[64, 64], behavior=[32, 32]),
    "medium": dict(pi=[256, 256], qf=[256, 256], behavior=[128, 128]),
    "big": dict(pi=[400, 300], qf=[400, 300], behavior=[200, 150]),
}
ACTOR_ACTIVATIONS = {"elu": nn.ELU, "relu": nn.ReLU}
CRITIC_ACTIVATIONS = {"gelu": nn.GELU, "mish": nn.Mish, "relu": nn.ReLU}
#: FlowRL's defaults as Optuna stores them. The other trials have to beat them.
DEFAULT_TRIAL = dict(
    learning_rate=1e-3,
    one_minus_gamma=0.01,
    batch_size_pow=8,
    tau=0.95,
    policy_delay=2,
    flow_steps=1,
    ode_solver="midpoint",
    expectile=0.9,
    w2_coef=0.1,
    spread_coef="auto",
    target_spread=0.16,
    guidance="paper",
    matching="action",
    net_arch="medium",
    actor_activation_fn="relu",
    activation_fn="relu",
    batch_norm=True,
    adam_beta1=0.5,
)


def sample_flowrl_params(trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]) -> dict[str, Any]:
    """
    Sample FlowRL's hyperparameters.

    :param trial: Optuna's trial. Its user attributes get the true values, and the worker that runs it
    :param n_actions: number of action dimensions
    :param n_envs: number of environments
    :param additional_args: rl_zoo3's additional arguments, which say whether HER is used
    :return: arguments of ``FlowRL``
    """
    trial.set_user_attr("worker", worker_name(os.getpid()))  # first, so that it is known even if the worker dies
    params: dict[str, Any] = {
        "learning_rate": trial.suggest_float("learning_rate", 1e-5, 2e-3, log=True),
        "one_minus_gamma": trial.suggest_float("one_minus_gamma", 1e-4, 3e-2, log=True),
        "batch_size_pow": trial.suggest_int("batch_size_pow", 5, 10),
        # from SB3's slow targets to the authors' 0.95
        "tau": trial.suggest_float("tau", 1e-3, 1.0, log=True),
        "policy_delay": trial.suggest_int("policy_delay", 1, 3),
        "flow_steps": trial.suggest_int("flow_steps", 1, 4),
        "ode_solver": trial.suggest_categorical("ode_solver", ["euler", "midpoint"]),
        "expectile": trial.suggest_float("expectile", 0.6, 0.95),
        "w2_coef": trial.suggest_float("w2_coef", 1e-3, 1.0, log=True),
        "spread_coef": trial.suggest_categorical("spread_coef", [0.0, "auto"]),
        "target_spread": trial.suggest_float("target_spread", 0.05, 0.4, log=True),
        "guidance": trial.suggest_categorical("guidance", ["paper", "reference"]),
        "matching": trial.suggest_categorical("matching", ["action", "pre_squash"]),
        "net_arch": trial.suggest_categorical("net_arch", list(NET_ARCHS)),
        "actor_activation_fn": trial.suggest_categorical("actor_activation_fn", list(ACTOR_ACTIVATIONS)),
        "activation_fn": trial.suggest_categorical("activation_fn", list(CRITIC_ACTIVATIONS)),
        "batch_norm": trial.suggest_categorical("batch_norm", [False, True]),
        "adam_beta1": trial.suggest_categorical("adam_beta1", [0.5, 0.9]),
    }
    if additional_args["using_her_replay_buffer"]:
        from rl_zoo3.hyperparams_opt import sample_her_params

        params = sample_her_params(trial, params, additional_args["her_kwargs"])

    trial.set_user_attr("gamma", 1 - params["one_minus_gamma"])
    trial.set_user_attr("batch_size", 2 ** params["batch_size_pow"])
    return convert_flowrl_params(params)


def convert_flowrl_params(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """
    Convert what Optuna stores to arguments of ``FlowRL``.

    :param sampled_params: a trial's parameters
    :return: arguments of ``FlowRL``
    """
    # Studies that started before these were searched used the defaults of that time
    former_defaults = {"spread_coef": 0.0, "batch_norm": False, "actor_activation_fn": "elu", "adam_beta1": 0.9}
    params = {**former_defaults, **sampled_params}
    params["gamma"] = 1 - params.pop("one_minus_gamma")
    params["batch_size"] = 2 ** params.pop("batch_size_pow")
    params["policy_kwargs"] = dict(
        net_arch=NET_ARCHS[params.pop("net_arch")],
        activation_fn=dict(
            pi=ACTOR_ACTIVATIONS[params.pop("actor_activation_fn")], qf=CRITIC_ACTIVATIONS[params.pop("activation_fn")]
        ),
        batch_norm=params.pop("batch_norm"),
        optimizer_kwargs=dict(betas=(params.pop("adam_beta1"), 0.999), fused=True),
    )
    return params


def worker_name(pid: int) -> str:
    """
    Return the name of a tuning worker on this machine.

    :param pid: its process id
    :return: the value of a trial's user attribute "worker"
    """
    return f"{platform.node()}:{pid}"
