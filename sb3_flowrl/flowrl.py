"""
FlowRL as a Stable-Baselines3 algorithm.
"""

import copy
import math
from collections.abc import Iterator
from functools import partial
from typing import Any, ClassVar, TypeVar

import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import FloatSchedule

from sb3_flowrl import checks, execution, losses, update
from sb3_flowrl.buffers import Batch, check_n_steps, float32_buffer, sample_batches
from sb3_flowrl.checkpoint.episodes import truncate_episodes
from sb3_flowrl.checkpoint.saving import SavableAlgorithm
from sb3_flowrl.diagnostics.dry_run import try_out
from sb3_flowrl.execution import CapturedStep, MaybeCompiled, matmul_precision, resolve_precision, set_learning_rate
from sb3_flowrl.flow import draw_noise
from sb3_flowrl.guidance import GUIDANCES, Guidance
from sb3_flowrl.legacy import DEFAULTS_VERSION, policy_space
from sb3_flowrl.networks import FlowActor, FlowCritic, FlowValue
from sb3_flowrl.policies import CnnPolicy, FlowActorCriticPolicy, MlpPolicy, MultiInputPolicy

SelfFlowRL = TypeVar("SelfFlowRL", bound="FlowRL")


class FlowRL(SavableAlgorithm):
    """
    FlowRL: Flow-Based Policy for Online Reinforcement Learning.

    An off-policy actor-critic whose actor is a flow: a state-conditioned velocity field, integrated from noise to an action.
    The flow maximizes Q_π while its Wasserstein-2 distance to the best behavior in the replay buffer stays bounded. Each
    buffer action attracts the flow, weighted by how much better the behavior did there than the present policy.

    Paper: https://arxiv.org/abs/2506.12811
    The authors' code: https://github.com/bytedance/FlowRL

    The defaults are the paper's equations, with a cheaper Q_β* and V_β* (``delay_behavior``), and four additions: a Q_π
    normalized by batch (see ``FlowActorCriticPolicy``), a faster Adam, actions that are kept apart (``spread_coef``), and an
    average of the actor for deterministic actions (``actor_tau``). Table D1 to D11 in docs/method.md has what else differs.
    ``sb3_flowrl.paper_arguments`` and ``sb3_flowrl.reference_arguments`` reproduce the paper and the authors' code.

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, MultiInputPolicy)
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param learning_rate: learning rate of all networks; it can be a function of the current progress remaining (from 1 to 0)
    :param buffer_size: size of the replay buffer
    :param learning_starts: how many steps of the model to collect transitions for before learning starts
    :param batch_size: Minibatch size for each gradient update
    :param tau: the soft update coefficient ("Polyak update", between 0 and 1), the weight of the online network.
        With the authors' 0.95 the targets have almost no lag
    :param gamma: the discount factor
    :param train_freq: Update the model every ``train_freq`` steps. Alternatively pass a tuple of frequency and unit
        like ``(5, "step")`` or ``(2, "episode")``.
    :param gradient_steps: How many gradient steps to do after each rollout. ``-1`` means as many as the rollout's steps
    :param action_noise: the action noise type (None by default), this can help
        for hard exploration problem. Cf common.noise for the different action noise type.
    :param replay_buffer_class: Replay buffer class to use (for instance ``HerReplayBuffer``).
        If ``None``, it will be automatically selected. A class of your own samples one batch at a time, which may be larger
        or smaller than ``batch_size``
    :param replay_buffer_kwargs: Keyword arguments to pass to the replay buffer on creation.
    :param optimize_memory_usage: Enable a memory efficient variant of the replay buffer at a cost of more complexity, see
        https://github.com/DLR-RM/stable-baselines3/issues/37#issuecomment-637501195
    :param n_steps: n of the n-step returns in the targets of Q_π and Q_β*. For more than one step, SB3's NStepReplayBuffer is
        used, which does not support Dict observations. A ``replay_buffer_class`` that you pass gets
        ``replay_buffer_kwargs={"n_steps": ..., "gamma": ...}`` instead
    :param policy_delay: Policy and target networks will only be updated once every policy_delay updates,
        the first update included. The value functions will be updated every time.
    :param delay_behavior: whether Q_β* and V_β* are updated only when the actor is, since nothing else uses them. The paper
        updates them every time
    :param actor_tau: weight of the actor in its moving average, at each of its steps. ``predict(deterministic=True)`` plays
        the average, which stays where the actor swings from update to update. Exploration and updates use the actor itself.
        ``None`` keeps no average
    :param flow_steps: number N of integration steps from noise to action
    :param ode_solver: integration by "euler", "midpoint" or "rk4": one, two or four evaluations of the velocity field a step
    :param expectile: τ in (0, 1) of the expectile regression that makes V_β* approach the best behavior in the buffer.
        The authors recommend 0.8 for HumanoidBench tasks that they did not report
    :param w2_coef: λ, the Lagrange multiplier of the Wasserstein-2 constraint; 0 removes the constraint
    :param guidance: how buffer actions are weighted, see ``sb3_flowrl.guidance``: "paper" (0 where the policy is no worse than
        the behavior, at most 1), "reference" (the authors' code, never 0), or a function of
        ``(q_behavior, q_policy, w2_coef)`` that returns the final weights, λ included
    :param per_sample: whether each weight acts on its own sample, as Theorem 4.2 needs. False multiplies the mean weight by
        the mean error, as the authors' code does
    :param matching: where the flow-matching error is measured. "action" compares the flow's end point, before it is squashed,
        with the stored action, as the authors' code does. "pre_squash" compares it with atanh of the action (clipped to
        ±0.999), so that a perfect match plays the stored action
    :param noise_clip: bound of the components of the flow's base samples a0 ~ N(0, I); ``None`` leaves them unbounded
    :param spread_coef: α, the coefficient of the term that keeps the policy's actions in one state apart, see
        ``losses.log_spread``. Without it the flow narrows during training. "auto" learns α, as SAC learns
        ``ent_coef``, so that the spread stays at ``target_spread``; "auto_0.1" starts from 0.1 instead of 1; 0 removes the
        term, as in the paper
    :param target_spread: the spread to keep with ``spread_coef="auto"``, from 0.03 to 0.6: about the standard deviation of
        actions scaled to [-1, 1] (geometric mean over their dimensions), see ``losses.log_spread``
    :param precision: how updates compute matrix products. "float32": exactly. "float32_fast": by oneDNN on a CPU and in
        TF32 on CUDA, see ``execution.matmul_precision``. "auto": the faster of these two that is exact on this machine, stored
        in ``resolved_precision``. "bfloat16": networks run under bfloat16 autocast; parameters, optimizer state and losses
        stay in float32
    :param compile: whether updates run through ``torch.compile`` (on CUDA as one CUDA graph each); the first one then takes up
        to a minute. "auto" compiles at once on CUDA, and from update 10 000 on a CPU
    :param use_sde: only False, so that one dict of arguments serves SAC and FlowRL
    :param stats_window_size: number of episodes over which the logged success rate, episode length and reward are averaged
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param policy_kwargs: additional arguments to be passed to the policy on creation, see ``FlowActorCriticPolicy``
    :param verbose: Verbosity level: 0 for no output, 1 for info messages, 2 for debug messages
    :param seed: Seed for the pseudo random generators
    :param device: Device (cpu, cuda, ...) on which the code should be run. "auto" takes the GPU if possible
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    :raises ValueError: before any work, if an argument or the action space is not supported
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    policy: FlowActorCriticPolicy
    actor: FlowActor
    critic: FlowCritic
    critic_target: FlowCritic | None
    behavior_critic: FlowCritic
    behavior_critic_target: FlowCritic
    behavior_value: FlowValue
    averaged_actor: FlowActor | None

    @checks.explain_unknown_arguments
    def __init__(
        self,
        policy: str | type[FlowActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1e-3,
        buffer_size: int = 1_000_000,  # 1e6
        learning_starts: int = 5_000,
        batch_size: int = 256,
        tau: float = 0.95,
        gamma: float = 0.99,
        train_freq: int | tuple[int, str] = 1,
        gradient_steps: int = 1,
        action_noise: ActionNoise | None = None,
        replay_buffer_class: type[ReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        optimize_memory_usage: bool = False,
        n_steps: int = 1,
        policy_delay: int = 2,
        delay_behavior: bool = True,
        actor_tau: float | None = 0.01,
        flow_steps: int = 1,
        ode_solver: str = "midpoint",
        expectile: float = 0.9,
        w2_coef: float = 0.1,
        guidance: str | Guidance = "paper",
        per_sample: bool = True,
        matching: str = "action",
        noise_clip: float | None = 1.0,
        spread_coef: float | str = "auto",
        target_spread: float = 0.16,
        precision: str = "auto",
        compile: bool | str = "auto",
        use_sde: bool = False,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ):
        self.policy_delay = policy_delay
        self.delay_behavior = delay_behavior
        self.actor_tau = actor_tau
        self.flow_steps = flow_steps
        self.ode_solver = ode_solver
        self.expectile = expectile
        self.w2_coef = w2_coef
        self.guidance = guidance
        self.per_sample = per_sample
        self.matching = matching
        self.noise_clip = noise_clip
        self.spread_coef = spread_coef
        self.target_spread = target_spread
        self.precision = precision
        self.compile = compile
        self.trained_on_normalized_obs = False
        # Files that lack these attributes are old, see `legacy`
        self.defaults_version, self.has_sorted_keys = DEFAULTS_VERSION, False
        self._generators_before_step = None
        if _init_setup_model:  # SB3 uses these before `_setup_model`, which checks all others
            if isinstance(policy, str):
                checks.check_choice("policy", policy, self.policy_aliases, or_else=", or a policy class")
            used = dict(policy=policy, train_freq=train_freq, stats_window_size=stats_window_size, seed=seed, device=device)
            checks.check_arguments(checks.ALGORITHM_CHECKS, used)
        if env is not None or _init_setup_model:
            env = checks.as_env(env, verbose)

        super().__init__(
            policy,
            env,
            learning_rate,
            buffer_size,
            learning_starts,
            batch_size,
            tau,
            gamma,
            train_freq,
            gradient_steps,
            action_noise=action_noise,
            replay_buffer_class=replay_buffer_class,
            replay_buffer_kwargs=copy.copy(replay_buffer_kwargs),  # SB3 adds to it
            optimize_memory_usage=optimize_memory_usage,
            n_steps=n_steps,
            policy_kwargs=copy.copy(checks.without_sde(policy_kwargs)),
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device=device,
            seed=seed,
            use_sde=use_sde,
            sde_support=False,
            supported_action_spaces=(spaces.Box,),
            support_multi_env=True,
        )

        if _init_setup_model:
            checks.check_train_freq(self.n_envs, self.train_freq)
            self._setup_model()

    def _setup_model(self) -> None:
        checks.check_model(self)
        check_n_steps(self.n_steps, self.replay_buffer_class, self.gamma)
        # The policy needs these to predict on its own
        flow_kwargs = dict(flow_steps=self.flow_steps, ode_solver=self.ode_solver, noise_clip=self.noise_clip)
        flow_kwargs["average_actor"] = self.actor_tau is not None
        checks.check_policy_kwargs(self.policy_class, self.policy_kwargs, of_algorithm=flow_kwargs)
        with float32_buffer(self, policy_space(self.observation_space, self.has_sorted_keys), flow_kwargs):
            super()._setup_model()
        checks.check_returns(self.gamma, self.n_steps, self.replay_buffer)
        self._create_aliases()
        self._setup_spread_coef()
        self.resolved_precision = resolve_precision(self.precision, self.device)
        if self.precision == "auto" and self.verbose >= 1:
            print(f"Using {self.resolved_precision} precision")
        self._differentiate_values = MaybeCompiled(update.value_gradients, self.device)
        self._differentiate_actor = MaybeCompiled(update.actor_gradients, self.device)
        self._cuda_graphs = self.device.type == "cuda" and execution.is_current(self.device)
        self._captured_step = CapturedStep(self._gradient_step)
        self._diverged = th.zeros((), device=self.device, dtype=th.float32)
        # Without an environment the model can only predict. A subclass's own step may need what it sets up later
        if self.env is not None and type(self)._gradient_step is FlowRL._gradient_step:
            try_out(self)

    def _setup_lr_schedule(self) -> None:
        self.lr_schedule = partial(checks.learning_rate_of, FloatSchedule(self.learning_rate).value_schedule)

    def _setup_spread_coef(self) -> None:
        self.log_spread_coef: th.Tensor | None = None
        self.spread_coef_optimizer: th.optim.Optimizer | None = None
        if isinstance(self.spread_coef, str):
            # Learn the logarithm, so that α stays above 0
            initial = math.log(checks.initial_spread_coef(self.spread_coef))
            self.log_spread_coef = th.full((1,), initial, device=self.device, dtype=th.float32, requires_grad=True)
            self.spread_coef_optimizer = th.optim.Adam([self.log_spread_coef], lr=self.lr_schedule(1), fused=True)

    def _current_spread_coef(self) -> th.Tensor | None:
        """Return α as the actor's loss takes it."""
        if self.log_spread_coef is not None:
            return self.log_spread_coef.detach().exp().squeeze()
        return th.full((), float(self.spread_coef), device=self.device, dtype=th.float32) if self.spread_coef else None

    def _create_aliases(self) -> None:
        self.actor = self.policy.actor
        self.critic = self.policy.critic
        self.critic_target = self.policy.critic_target
        self.behavior_critic = self.policy.behavior_critic
        self.behavior_critic_target = self.policy.behavior_critic_target
        self.behavior_value = self.policy.behavior_value
        self.averaged_actor = self.policy.averaged_actor

    def train(self, gradient_steps: int, batch_size: int = 256) -> None:
        """
        Sample the replay buffer and do the updates (paper, Algorithm 1, lines 6 to 10).

        :param gradient_steps: number of updates
        :param batch_size: samples in each update
        :raises ValueError: if a sample, a loss or a gradient is not finite; no network takes a step from it
        """
        # Switch to train mode (this affects batch norm / dropout)
        self.policy.set_training_mode(True)
        # Update learning rate according to lr schedule
        self._update_learning_rate(self._optimizers())

        logs: list[update.Terms] = []
        diverged = self._diverged.zero_()  # read once, after all updates
        step = self._step_in_a_graph if self._cuda_graphs and self._compiles_now() else self._gradient_step
        with matmul_precision(self.settings.precision, self.device):
            for batch in self._sample_batches(gradient_steps, batch_size):  # Line 6
                # Delayed policy updates; the first update of a fresh model steps the actor, as in the authors' code
                steps_actor = self._n_updates % self.policy_delay == 0
                logs.append(step(batch, steps_actor, diverged))  # Lines 7 to 10
                self._n_updates += 1

        self._record(logs, diverged)

    def _gradient_step(self, batch: Batch, steps_actor: bool, diverged: th.Tensor) -> update.Terms:
        """
        Take one gradient step (paper, Algorithm 1, lines 7 to 10), without reading a tensor on the host.

        :param batch: replay samples
        :param steps_actor: whether the actor and the targets take their step
        :param diverged: 1 if an earlier loss has exploded, else 0, a scalar; updated in place
        :return: what to log
        """
        compiled, settings = self._compiles_now(), self.settings
        noise = draw_noise(len(batch.actions), self.actor.action_dim, self.device)

        # Lines 7 and 8: Q_π, Q_β* and V_β*. They read only values from before this step: one backward pass serves them all
        learns_behavior = steps_actor or not self.delay_behavior
        optimizers = self.policy.value_optimizers if learns_behavior else [self.critic.optimizer]
        parameters = update.trainable_parameters(optimizers)
        gradients, q_behavior = self._differentiate_values(
            self.policy, settings, batch, noise, learns_behavior, parameters, compiled=compiled
        )
        update.descend(optimizers, gradients, diverged)
        if not steps_actor:
            return gradients.terms

        # Line 9: the actor, and the coefficient of its spread
        terms, optimizers = gradients.terms, [self.actor.optimizer]
        parameters, coef = update.trainable_parameters(optimizers), self._current_spread_coef()
        gradients = self._differentiate_actor(
            self.policy, settings, batch, noise, q_behavior, coef, parameters, compiled=compiled
        )
        update.descend(optimizers, gradients, diverged)
        if self.spread_coef_optimizer is not None:
            of_coef = losses.spread_coef_gradient(gradients.terms["log_spread"], self.target_spread).reshape(1)
            update.descend([self.spread_coef_optimizer], gradients._replace(gradients=[of_coef]), diverged)

        # Line 10: the targets, and the actor that is played
        for online, average, tau in self.policy.averages(self.tau, self.actor_tau):
            update.polyak_average(online, average, tau * (1.0 - diverged))
        return terms | gradients.terms

    def _step_in_a_graph(self, batch: Batch, steps_actor: bool, diverged: th.Tensor) -> update.Terms:
        """Take :meth:`_gradient_step` as one CUDA graph. The constants that the step reads on the host select the graph."""
        settings = self.settings._replace(guidance=execution.IdentityKey(self.guidance))  # type: ignore[arg-type]
        constants = (settings, self.tau, self.actor_tau, self.delay_behavior, self.target_spread, self.spread_coef)
        return self._captured_step(batch, steps_actor, diverged, self._optimizers(), (constants, self.actor.integration))

    def _update_learning_rate(self, optimizers: list[th.optim.Optimizer] | th.optim.Optimizer) -> None:
        super()._update_learning_rate([] if self._cuda_graphs else optimizers)
        if self._cuda_graphs:
            set_learning_rate(self._optimizers(), self.lr_schedule(self._current_progress_remaining), self.device)

    def _optimizers(self) -> list[th.optim.Optimizer]:
        networks = [self.actor.optimizer, *self.policy.value_optimizers]
        return networks if self.spread_coef_optimizer is None else [*networks, self.spread_coef_optimizer]

    def _sample_batches(self, gradient_steps: int, batch_size: int) -> Iterator[Batch]:
        buffer, normalize = self.replay_buffer, self._vec_normalize_env
        assert buffer is not None  # for mypy
        return sample_batches(
            buffer,
            gradient_steps,
            batch_size,
            self.gamma,
            normalize,
            self.device,
            check=lambda sample: checks.check_finite_batch(sample, self._n_updates, self.num_timesteps),
        )

    @property
    def settings(self) -> update.Settings:
        """Collect the constants of the update's equations from the present arguments."""
        guidance = GUIDANCES[self.guidance] if isinstance(self.guidance, str) else self.guidance
        precision = resolve_precision(self.precision, self.device)
        return update.Settings(self.expectile, self.w2_coef, guidance, self.per_sample, self.matching, precision)

    def _compiles_now(self) -> bool:
        if self.compile == "auto":
            return self._cuda_graphs or self._n_updates >= execution.AUTO_COMPILE_UPDATES
        return bool(self.compile)

    def _record(self, logs: list[update.Terms], diverged: th.Tensor) -> None:
        """Log the means of the terms of the last updates, and raise ValueError if a loss or a gradient was not finite."""
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        if not logs:
            return
        coef = self._current_spread_coef()
        columns = update.read_terms([*logs, {} if coef is None else {"spread_coef": coef}, {"diverged": diverged}])
        updates = range(self._n_updates - len(logs), self._n_updates)
        checks.check_not_diverged(columns, columns.pop("diverged")[0] > 0, updates, self.num_timesteps)
        for name, column in columns.items():
            self.logger.record(f"train/{name}", sum(column) / len(column))

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """
        Set the environment, as in SB3.

        :param env: the environment
        :param force_reset: whether it is reset before the next training
        :raises ValueError: if it is no environment, or has other spaces than the model
        """
        super().set_env(checks.as_env(env, self.verbose), force_reset)

    def learn(
        self: SelfFlowRL,
        total_timesteps: int | float,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str = "FlowRL",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfFlowRL:
        """
        Return a trained model, as in SB3.

        :param total_timesteps: The number of environment steps to train for; it may be a whole float such as 1e6. With
            ``reset_num_timesteps=False``, 0 or less (as of ``1_000_000 - model.num_timesteps``) means nothing is left to do
        :param callback: callback(s) called at every step with state of the algorithm
        :param log_interval: number of episodes between two lines of the log
        :param tb_log_name: the name of the run for TensorBoard
        :param reset_num_timesteps: whether the step counter starts again at 0
        :param progress_bar: whether to show a progress bar (tqdm and rich)
        :return: the trained model
        :raises ValueError: if ``total_timesteps`` is not whole or too small, if the replay buffer does not suit the model, if
            ``train_freq`` counts episodes of several environments, or if a sample or a loss is not finite
        """
        total_timesteps = checks.number_of_steps(total_timesteps, reset_num_timesteps)
        checks.check_train_freq(self.n_envs, self.train_freq)
        checks.check_loaded_buffer(self.n_envs, self.replay_buffer)
        checks.check_returns(self.gamma, self.n_steps, self.replay_buffer)
        execution.warn_if_emulated(self.precision, self.device)
        self.trained_on_normalized_obs = getattr(self.get_vec_normalize_env(), "norm_obs", False)
        if isinstance(self.replay_buffer, NStepReplayBuffer) and (reset_num_timesteps or self._last_obs is None):
            truncate_episodes(self.replay_buffer)  # the environments are reset: no return goes on in the next episode
        n_updates_before = self._n_updates
        super().learn(
            total_timesteps,
            callback=callback,
            log_interval=log_interval,
            tb_log_name=tb_log_name,
            reset_num_timesteps=reset_num_timesteps,
            progress_bar=progress_bar,
        )
        if self._num_timesteps_at_start < self.num_timesteps and self._n_updates == n_updates_before:
            checks.warn_of_no_update(self)
        return self
