"""FlowRL as a user of Stable-Baselines3 meets it: training, prediction, saving and loading."""

import zipfile

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv, SimpleMultiObsEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import Logger, configure
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.utils import LinearSchedule, set_random_seed
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from sb3_flowrl import FlowActorCriticPolicy, FlowRL, NStepRecencyReplayBuffer, losses, paper_arguments, reference_arguments
from sb3_flowrl.flow import FlowNoise
from sb3_flowrl.networks import FlowActor
from sb3_flowrl.replay import Batch
from sb3_flowrl.step import hand_out
from sb3_flowrl.update import ACTOR_LOGS, SPREAD_LOG, VALUE_LOGS, Gradients
from tests.golden import NETWORKS
from tests.test_policies import ScaleExtractor

SMALL = dict(policy_kwargs=dict(net_arch=[16]), learning_starts=50, batch_size=32, buffer_size=1_000)


def make_model(env="Pendulum-v1", **kwargs) -> FlowRL:
    return FlowRL("MlpPolicy", env, **{**SMALL, "seed": 0, **kwargs})


def trained_model(**kwargs) -> FlowRL:
    return make_model(**kwargs).learn(70)


def networks_of(model: FlowRL) -> set[str]:
    """The names of its networks: a Q_π that is normalised by batch has no target."""
    return {name for name in NETWORKS if getattr(model.policy, name) is not None}


def batch_of(model: FlowRL, batch_size: int) -> Batch:
    """A sample of the model's replay buffer, as an update sees it."""
    (batch,) = model._sample_batches(1, batch_size)
    return batch


def parameters(model: FlowRL) -> dict[str, th.Tensor]:
    return {name: value.clone() for name, value in model.policy.state_dict().items()}


def assert_same(ours: dict[str, th.Tensor], theirs: dict[str, th.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert th.equal(value, theirs[name]), name


def moments(model: FlowRL) -> dict[str, th.Tensor]:
    """Adam's, asked of the optimisers themselves, so that none that isn't saved goes unnoticed."""
    optimizers = {name: getattr(model, name).optimizer for name in ("actor", "critic", "behavior_critic", "behavior_value")}
    return {
        f"{name}/{index}/{key}": value.clone()
        for name, optimizer in optimizers.items()
        for index, state in optimizer.state_dict()["state"].items()
        for key, value in state.items()
    }


class StepCountingEnv(gym.Env):
    """
    Episodes of a fixed length; the observation is the step's number and the reward 1.

    :param terminates: whether an episode ends by termination or by a time-out
    """

    def __init__(self, terminates: bool, length: int = 3):
        self.observation_space = spaces.Box(0, 10, (1,), dtype=np.float32)
        self.action_space = spaces.Box(-1, 1, (1,), dtype=np.float32)
        self.terminates, self.length = terminates, length

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action):
        self.steps += 1
        ends = self.steps == self.length
        obs = np.full(1, self.steps, dtype=np.float32)
        return obs, 1.0, ends and self.terminates, ends and not self.terminates, {}


class Recorder:
    """Records the arguments with which a function of ``losses`` is called."""

    def __init__(self, monkeypatch, function: str):
        self.calls: list[tuple] = []
        original = getattr(losses, function)

        def wrapper(*args, **kwargs):
            self.calls.append(args)
            return original(*args, **kwargs)

        monkeypatch.setattr(losses, function, wrapper)


# ---------------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize(
    "kwargs",
    [
        dict(),
        dict(flow_steps=3, ode_solver="euler", matching="pre_squash", per_sample=False, noise_clip=None),
        dict(flow_steps=2, ode_solver="rk4", guidance="reference", expectile=0.7, w2_coef=0.0, policy_delay=1),
        dict(learning_rate=LinearSchedule(1e-3, 1e-4, 1.0), gamma=0.9, tau=0.005),
        dict(action_noise=NormalActionNoise(np.zeros(1), 0.1 * np.ones(1)), train_freq=(1, "episode"), gradient_steps=-1),
        dict(optimize_memory_usage=True, replay_buffer_kwargs=dict(handle_timeout_termination=False)),
        dict(n_steps=3, train_freq=4, gradient_steps=2),
        dict(precision="bfloat16"),
        dict(policy_kwargs=dict(net_arch=[16], n_critics=3, layer_norm=False, activation_fn=nn.ELU)),
        dict(policy_kwargs=dict(net_arch=[16] * 3, critic_layout="reference", optimizer_class=th.optim.AdamW)),
        dict(policy_kwargs=dict(net_arch=[16], batch_norm=False), spread_coef=0.0),
        dict(policy_kwargs=dict(features_extractor_class=ScaleExtractor, features_extractor_kwargs=dict(scale=1.0))),
        dict(
            policy_kwargs=dict(
                features_extractor_class=ScaleExtractor,
                features_extractor_kwargs=dict(scale=1.0),
                share_features_extractor=True,
            )
        ),
    ],
    ids=lambda kwargs: ",".join(kwargs) or "defaults",
)
def test_learns_with_every_option_and_every_network_moves(kwargs):
    model = make_model(**kwargs)
    before = parameters(model)
    # at tau=0.005 a target moves little in few updates, but it moves
    model.learn(260 if "train_freq" in kwargs else 70)
    after = parameters(model)
    for network in networks_of(model):
        moved = [not th.equal(before[name], after[name]) for name in before if name.startswith(f"{network}.")]
        assert any(moved), network
    assert all(th.isfinite(value).all() for value in after.values())


@pytest.mark.parametrize("arguments", [paper_arguments(action_dim=1), reference_arguments()], ids=["paper", "reference"])
def test_presets_train(arguments):
    arguments["policy_kwargs"].update(net_arch=[16] * 3)
    model = FlowRL("MlpPolicy", "Pendulum-v1", **{**arguments, "learning_starts": 50, "buffer_size": 1_000, "seed": 0})
    model.learn(60)
    assert all(th.isfinite(value).all() for value in parameters(model).values())


def test_presets_differ_where_paper_and_code_differ():
    paper, reference = paper_arguments(action_dim=6), reference_arguments()
    assert paper.keys() == reference.keys()
    differing = {name for name in paper if paper[name] != reference[name]}
    # D11, D2, D1, D4, D7, D8, D10, and D3 with the critics' sizes; D5, D6 are the same option twice and D9 no option
    expected = "w2_coef guidance per_sample noise_clip replay_buffer_class policy_delay precision policy_kwargs"
    assert differing == set(expected.split())
    assert paper["w2_coef"] == pytest.approx(0.6)


def test_presets_are_fresh_each_time():
    reference_arguments()["policy_kwargs"]["net_arch"] = None
    assert reference_arguments()["policy_kwargs"]["net_arch"] is not None


def test_same_seed_same_numbers_and_another_seed_others():
    runs = [trained_model(seed=seed) for seed in (1, 1, 2)]
    assert_same(parameters(runs[0]), parameters(runs[1]))
    obs = runs[0].env.reset()
    predictions = []
    for model in runs[:2]:
        set_random_seed(5)
        predictions.append(model.predict(obs)[0])
    np.testing.assert_array_equal(*predictions)
    assert not th.equal(parameters(runs[0])["actor.velocity_net.0.weight"], parameters(runs[2])["actor.velocity_net.0.weight"])


def test_total_timesteps_may_be_a_whole_float():
    assert make_model().learn(6e1).num_timesteps == 60
    assert make_model().learn(np.int64(60)).num_timesteps == 60


@pytest.mark.parametrize("policy_delay", [1, 3])
def test_actor_and_targets_step_at_the_first_update_and_every_policy_delay_updates_across_calls(policy_delay):
    model = trained_model(policy_delay=policy_delay, learning_starts=60, policy_kwargs=dict(net_arch=[16], batch_norm=False))
    model._n_updates = 0
    moved = {"actor": [], "critic_target": [], "behavior_critic_target": [], "critic": [], "behavior_value": []}
    for gradient_steps in (1, 1, 1, 1, 1, 1, 1):
        before = parameters(model)
        model.train(gradient_steps, batch_size=8)
        after = parameters(model)
        for network, record in moved.items():
            names = [name for name in before if name.startswith(f"{network}.")]
            record.append(any(not th.equal(before[name], after[name]) for name in names))
    expected = [update % policy_delay == 0 for update in range(7)]
    assert moved["actor"] == moved["critic_target"] == moved["behavior_critic_target"] == expected
    assert moved["critic"] == moved["behavior_value"] == [True] * 7
    assert model._n_updates == 7


@pytest.mark.parametrize("tau", [0.0, 0.25, 1.0])
def test_targets_follow_by_tau_which_is_read_live(tau):
    model = trained_model()
    model.tau = tau
    model._n_updates = 0
    before = parameters(model)
    model.train(1, batch_size=8)
    after = parameters(model)
    for name, value in after.items():
        if "target" in name:
            online = after[name.replace("_target", "")]
            th.testing.assert_close(value, (1 - tau) * before[name] + tau * online)


def test_the_actor_step_computes_no_gradients_of_the_value_functions(monkeypatch):
    model = trained_model()
    model._n_updates = 0  # with an actor step
    values = [*model.critic.parameters(), *model.behavior_critic.parameters(), *model.behavior_value.parameters()]
    gradients = []
    actor_gradients = model._actor_gradients
    monkeypatch.setattr(
        model, "_actor_gradients", lambda *args: gradients.extend(p.grad.clone() for p in values) or actor_gradients(*args)
    )
    model.train(1, batch_size=8)
    assert gradients and all(th.equal(before, parameter.grad) for before, parameter in zip(gradients, values, strict=True))


@pytest.mark.parametrize("terminates", [True, False])
def test_terminations_end_the_return_and_time_outs_do_not(terminates, monkeypatch):
    recorder = Recorder(monkeypatch, "bootstrap_target")
    model = make_model(env=gym.wrappers.TimeLimit(StepCountingEnv(terminates), 100), learning_starts=60).learn(70)
    batches = [batch_of(model, 64)]
    monkeypatch.setattr(model, "_sample_batches", lambda *args: batches)
    recorder.calls.clear()
    model.train(1, batch_size=64)
    (_, dones, discounts, _), (_, behavior_dones, behavior_discounts, _) = recorder.calls
    last_step = batches[0].next_observations == 3
    assert last_step.any() and not last_step.all()
    assert th.equal(dones, last_step.float() if terminates else th.zeros_like(dones))
    assert th.equal(dones, behavior_dones)
    assert th.equal(discounts, behavior_discounts) and (discounts == model.gamma).all()


def test_n_step_discounts_reach_both_targets(monkeypatch):
    recorder = Recorder(monkeypatch, "bootstrap_target")
    model = make_model(env=StepCountingEnv(terminates=True), n_steps=2, gamma=0.9, learning_starts=60).learn(65)
    recorder.calls.clear()
    model.train(1, batch_size=64)
    (rewards, dones, discounts, _), (behavior_rewards, behavior_dones, behavior_discounts, _) = recorder.calls
    th.testing.assert_close(rewards.unique(), th.tensor([1.0, 1.9]))  # the last step of an episode stands alone
    full = rewards > 1.5
    th.testing.assert_close(discounts[full], th.full_like(discounts[full], 0.81))
    for ours, behaviors in ((rewards, behavior_rewards), (dones, behavior_dones), (discounts, behavior_discounts)):
        assert th.equal(ours, behaviors)


def test_vec_normalize_normalises_what_the_networks_see(monkeypatch):
    env = VecNormalize(make_vec_env("Pendulum-v1", n_envs=2))
    model = make_model(env=env, train_freq=2, gradient_steps=-1).learn(200)
    seen = []
    value_gradients = model._value_gradients
    monkeypatch.setattr(model, "_value_gradients", lambda *args: seen.append(args[0]) or value_gradients(*args))
    model.train(1, batch_size=512)
    assert model.replay_buffer.observations[:, :, 2].max() > 4  # stored as the environment gave them
    assert abs(seen[0].observations.mean()) < 0.5 and 0.5 < seen[0].observations.std() < 1.5
    assert seen[0].rewards.abs().max() < 10 < np.abs(model.replay_buffer.rewards).max()


def test_several_environments_and_updates_for_each_step():
    env = make_vec_env("Pendulum-v1", n_envs=3)
    model = make_model(env=env, train_freq=(2, "step"), gradient_steps=-1, learning_starts=30).learn(60)
    # 6 transitions a rollout, none trained on until more than 30 are there
    assert model.num_timesteps == 60 and model._n_updates == 30


def test_learning_rate_schedule_reaches_every_optimizer():
    model = make_model(learning_rate=lambda progress_remaining: 1e-3 * progress_remaining).learn(60)
    model._current_progress_remaining = 0.5
    model.train(1, batch_size=8)
    for network in ("actor", "critic", "behavior_critic", "behavior_value"):
        assert [group["lr"] for group in getattr(model, network).optimizer.param_groups] == [pytest.approx(5e-4)]


def test_a_rollout_beyond_the_end_has_the_learning_rate_of_the_end():
    seen = []
    model = make_model(learning_rate=lambda progress: seen.append(progress) or 1e-3 * progress, train_freq=(40, "step"))
    model.learn(100)
    assert model.num_timesteps == 120 and seen[-1] == 0 and model.actor.optimizer.param_groups[0]["lr"] == 0


@pytest.mark.parametrize("late", [-1e-4, np.nan, np.inf])
def test_a_learning_rate_that_becomes_invalid_is_an_error(late):
    model = make_model(learning_rate=lambda progress_remaining: 1e-3 if progress_remaining > 0.5 else late)
    with pytest.raises(ValueError, match=rf"learning_rate returned {late} for progress_remaining=0\.\d+"):
        model.learn(120)
    assert all(parameter.isfinite().all() for parameter in model.policy.parameters())


def test_what_is_logged(tmp_path):
    model = make_model(spread_coef=0.5)
    model.set_logger(configure(str(tmp_path), ["json"]))
    model.learn(60)
    model.train(4, batch_size=16)
    logged = model.logger.name_to_value
    names = (
        "actor_loss critic_loss behavior_critic_loss value_loss flow_matching_loss weighted_flow_matching_loss "
        "guidance_weight guidance_active q_policy q_behavior log_spread spread_coef n_updates learning_rate"
    )
    assert {f"train/{name}" for name in names.split()} <= set(logged)
    assert all(type(value) in (int, float) for value in logged.values())
    assert logged["train/n_updates"] == model._n_updates == 14
    assert 0 <= logged["train/guidance_active"] <= 1 and 0 <= logged["train/guidance_weight"] <= 1
    spread = logged["train/spread_coef"] * logged["train/log_spread"]
    actor_loss = logged["train/weighted_flow_matching_loss"] - logged["train/q_policy"] - spread
    assert logged["train/actor_loss"] == pytest.approx(actor_loss, rel=1e-4)


def test_logs_are_means_over_the_updates_of_a_call(monkeypatch):
    model = trained_model(policy_delay=1)
    recorder = []
    value_gradients = model._value_gradients

    def record(*args):
        leaves, found, q_behavior = value_gradients(*args)
        recorder.append(found.logs[VALUE_LOGS.index("critic_loss")].item())
        return leaves, found, q_behavior

    monkeypatch.setattr(model, "_value_gradients", record)
    model.train(5, batch_size=8)
    assert len(recorder) == 5
    assert model.logger.name_to_value["train/critic_loss"] == pytest.approx(np.mean(recorder), rel=1e-5)


def test_tensorboard_run_is_named_after_the_algorithm(tmp_path):
    pytest.importorskip("tensorboard")
    make_model(tensorboard_log=str(tmp_path)).learn(60)
    assert [path.name for path in tmp_path.iterdir()] == ["FlowRL_1"]


def test_progress_bar_and_eval_callback(tmp_path, capsys):
    pytest.importorskip("tqdm")
    pytest.importorskip("rich")
    callback = EvalCallback(gym.make("Pendulum-v1"), eval_freq=30, n_eval_episodes=1, best_model_save_path=str(tmp_path))
    make_model().learn(60, callback=callback, progress_bar=True)
    assert "60/60" in "".join(capsys.readouterr())
    assert FlowRL.load(tmp_path / "best_model").policy is not None


@pytest.mark.parametrize("share_features_extractor", [False, True])
@pytest.mark.parametrize("policy", ["CnnPolicy", "MultiInputPolicy"])
def test_images_and_dict_observations(policy, share_features_extractor, tmp_path):
    if policy == "CnnPolicy":
        env = FakeImageEnv(screen_height=40, screen_width=40, n_channels=1, discrete=False)
        extractor_kwargs = dict(features_dim=8)
    else:
        env = SimpleMultiObsEnv(discrete_actions=False)
        extractor_kwargs = dict(cnn_output_dim=8)
    policy_kwargs = dict(
        net_arch=[8], features_extractor_kwargs=extractor_kwargs, share_features_extractor=share_features_extractor
    )
    model = FlowRL(policy, env, learning_starts=20, buffer_size=100, batch_size=16, policy_kwargs=policy_kwargs, seed=0)
    before = parameters(model)
    model.learn(30)
    after = parameters(model)
    moved = [name for name in before if "features_extractor" in name and not th.equal(before[name], after[name])]
    assert {name.split(".")[0] for name in moved} == networks_of(model)

    model.save(tmp_path / "model")
    loaded = FlowRL.load(tmp_path / "model", env=env)
    assert_same(after, parameters(loaded))
    obs = model.env.reset()
    np.testing.assert_array_equal(loaded.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])


# Shared: the states and the next states, and each target's own pass. Separate: an actor's step also needs the actor's
# features of the states, and the critic's once more, as its extractor has just been stepped. Without a target the critic sees
# the next states itself.
@pytest.mark.parametrize(
    ("batch_norm", "share_features_extractor", "steps_actor", "passes"),
    [
        (False, True, True, 4),
        (False, True, False, 4),
        (False, False, True, 9),
        (False, False, False, 7),
        (True, True, True, 3),
        (True, True, False, 3),
        (True, False, True, 9),
        (True, False, False, 7),
    ],
)
def test_features_are_extracted_once(batch_norm, share_features_extractor, steps_actor, passes, monkeypatch):
    extractor = dict(features_extractor_class=ScaleExtractor, features_extractor_kwargs=dict(scale=2.0))
    options = dict(batch_norm=batch_norm, share_features_extractor=share_features_extractor)
    model = trained_model(policy_kwargs=dict(net_arch=[8], **options, **extractor))
    model._n_updates = 0 if steps_actor else 1
    calls = []
    forward = ScaleExtractor.forward
    monkeypatch.setattr(ScaleExtractor, "forward", lambda self, obs: calls.append(obs) or forward(self, obs))
    model.train(1, batch_size=8)
    assert len(calls) == passes


def test_a_dict_of_observations_that_is_not_finite_is_named():
    model = FlowRL("MultiInputPolicy", SimpleMultiObsEnv(discrete_actions=False), learning_starts=20, buffer_size=100)
    model.learn(20)
    model.replay_buffer.observations["vec"][:] = np.nan
    with pytest.raises(ValueError, match=r"`observations\['vec'\]` of the replay sample"):
        model.train(1, batch_size=8)


# ------------------------------------------------------------------------------------------------------- what options mean


def actor_loss_of(model: FlowRL) -> tuple[th.Tensor, dict[str, th.Tensor]]:
    """The actor's loss of a model on a batch and noise that depend on nothing else."""
    th.manual_seed(7)
    np.random.seed(7)
    batch, noise = batch_of(model, 64), model._draw_noise(64)
    with th.no_grad():
        q_behavior = losses.clipped_min(th.stack(model.critic(batch.observations, batch.actions)))
    return named(model._actor_gradients(batch, noise, model._actor_features(batch), q_behavior))


def named(result: tuple[list[th.Tensor], Gradients]) -> tuple[th.Tensor, dict[str, th.Tensor]]:
    _, found = result
    logs = dict(zip((*ACTOR_LOGS, SPREAD_LOG), found.logs, strict=False))
    return logs["actor_loss"], logs


def test_guidance_may_be_a_callable_that_returns_the_final_weights():
    def guidance(q_behavior, q_policy, w2_coef):
        assert q_behavior.shape == q_policy.shape == (64, 1) and not q_policy.requires_grad
        return 2 * w2_coef * th.ones_like(q_policy)

    model = trained_model()
    model.guidance, model.w2_coef = guidance, 0.3
    _, logs = actor_loss_of(model)
    assert logs["guidance_weight"].item() == pytest.approx(0.6)
    th.testing.assert_close(logs["weighted_flow_matching_loss"], 0.6 * logs["flow_matching_loss"])


def test_guidance_of_the_wrong_shape_is_an_error():
    model = trained_model()
    model.guidance = lambda q_behavior, q_policy, w2_coef: q_policy.mean()
    with pytest.raises(ValueError, match=r"returned weights of shape \(\); .* of shape \(64, 1\)"):
        actor_loss_of(model)


def test_guidance_active_is_the_share_of_samples_where_the_behavior_did_better():
    model = trained_model()
    model.guidance = lambda q_behavior, q_policy, w2_coef: (q_behavior > q_policy).float()
    _, logs = actor_loss_of(model)
    assert 0 < logs["guidance_active"] < 1
    assert logs["guidance_active"] == logs["guidance_weight"]


def test_w2_coef_zero_leaves_the_constraint_out():
    _, logs = actor_loss_of(trained_model(w2_coef=0.0, spread_coef=0.0))
    assert logs["weighted_flow_matching_loss"] == 0 and logs["flow_matching_loss"] > 0
    th.testing.assert_close(logs["actor_loss"], -logs["q_policy"])


def test_per_sample_and_scalar_weights_differ_only_in_the_constraint():
    model = trained_model()
    _, per_sample = actor_loss_of(model)
    model.per_sample = False
    _, scalar = actor_loss_of(model)
    th.testing.assert_close(scalar["weighted_flow_matching_loss"], scalar["guidance_weight"] * scalar["flow_matching_loss"])
    assert not th.isclose(scalar["weighted_flow_matching_loss"], per_sample["weighted_flow_matching_loss"])
    assert scalar["flow_matching_loss"] == per_sample["flow_matching_loss"]


def test_matching_says_what_the_velocity_field_is_regressed_onto(monkeypatch):
    """A field that stands still has the error of the path's own velocity: of a - a0, or of atanh(a) - a0."""
    model = trained_model(noise_clip=0.5)
    for parameter in model.actor.velocity_net.parameters():
        nn.init.zeros_(parameter)
    batch = batch_of(model, 64)
    noise = FlowNoise(th.randn(64, 1), th.randn(64, 1), th.randn(64, 1), th.rand(64, 1))
    base_points = noise.path.clamp(-0.5, 0.5)
    for matching, end_points in (("action", batch.actions), ("pre_squash", batch.actions.clamp(-0.999, 0.999).atanh())):
        model.matching = matching
        _, logs = named(model._actor_gradients(batch, noise, model._actor_features(batch), th.zeros(64, 1)))
        th.testing.assert_close(logs["flow_matching_loss"], (end_points - base_points).square().mean())


def test_weights_use_q_behavior_from_before_and_q_policy_from_after_the_value_step(monkeypatch):
    model = trained_model()
    model._n_updates = 0
    batch, noise = batch_of(model, 16), model._draw_noise(16)
    monkeypatch.setattr(model, "_sample_batches", lambda *args: [batch])
    monkeypatch.setattr(model, "_draw_noise", lambda batch_size: noise)
    seen = {}
    model.guidance = lambda q_behavior, q_policy, w2_coef: (
        seen.update(q_behavior=q_behavior, q_policy=q_policy) or th.ones_like(q_policy)
    )
    with th.no_grad():
        q_behavior_before = losses.clipped_min(th.stack(model.behavior_critic(batch.observations, batch.actions)))
        actions = model.actor.flow(batch.observations, noise.action)
        q_policy_before = losses.clipped_min(th.stack(model.critic(batch.observations, actions)))
    model.train(1, batch_size=16)
    with th.no_grad():
        q_policy_after = losses.clipped_min(th.stack(model.critic(batch.observations, actions)))
    th.testing.assert_close(seen["q_behavior"], q_behavior_before)
    th.testing.assert_close(seen["q_policy"], q_policy_after)
    assert not th.allclose(seen["q_policy"], q_policy_before)


def test_bfloat16_runs_the_layers_in_half_precision_and_keeps_losses_near(monkeypatch):
    model = trained_model(policy_kwargs=dict(net_arch=[64, 64]))
    _, exact = actor_loss_of(model)
    dtypes = []
    linear = th.nn.functional.linear
    monkeypatch.setattr(
        th.nn.functional, "linear", lambda *args, **kwargs: dtypes.append((y := linear(*args, **kwargs)).dtype) or y
    )
    model.precision = "bfloat16"
    _, mixed = actor_loss_of(model)
    # three times the velocity field, once each of the twin critic, three layers each
    assert dtypes[-15:] == [th.bfloat16] * (3 + 2) * 3
    assert mixed["actor_loss"].dtype == th.float32
    assert not th.equal(mixed["actor_loss"], exact["actor_loss"])
    for name in ("actor_loss", "flow_matching_loss", "q_policy"):
        th.testing.assert_close(mixed[name], exact[name], rtol=0.05, atol=0.02)
    model.train(2, batch_size=16)
    assert all(parameter.dtype == th.float32 for parameter in model.policy.parameters())
    assert all(value.dtype == th.float32 for value in moments(model).values())


def test_bfloat16_gradients_point_where_the_exact_ones_do():
    """For every weight: autocast must not hand a weight that was cast without gradient to a loss that needs one."""
    model = trained_model(policy_kwargs=dict(net_arch=[64, 64]))
    batch, noise = batch_of(model, 256), model._draw_noise(256)
    gradients = {}
    for precision in ("float32", "bfloat16"):
        model.precision = precision
        model.policy.zero_grad()
        leaves, found, q_behavior = model._value_gradients(batch, noise, None)
        hand_out([], leaves, found.gradients)
        leaves, found = model._actor_gradients(batch, noise, model._actor_features(batch), q_behavior)
        hand_out([], leaves, found.gradients)
        gradients[precision] = {name: p.grad.clone() for name, p in model.policy.named_parameters() if p.grad is not None}
    exact, mixed = gradients["float32"], gradients["bfloat16"]
    assert exact.keys() == mixed.keys()
    assert {name.split(".")[0] for name in exact} == {network for network in NETWORKS if "target" not in network}
    for name, gradient in exact.items():
        assert th.cosine_similarity(gradient.flatten(), mixed[name].flatten(), dim=0) > 0.98, name


# ------------------------------------------------------------------------------------------------------- saving and loading


def test_save_and_load_restore_all_networks_and_optimizers(tmp_path):
    model = trained_model(flow_steps=2, ode_solver="rk4", noise_clip=None, guidance="reference")
    model.save(tmp_path / "model")
    loaded = FlowRL.load(tmp_path / "model", env=model.env)
    assert_same(parameters(model), parameters(loaded))
    assert len(moments(model)) > 0
    assert_same(moments(model), moments(loaded))
    assert loaded.flow_steps == loaded.actor.flow_steps == 2
    assert loaded.actor.ode_solver == "rk4" and loaded.actor.noise_clip is None and loaded.guidance == "reference"
    assert loaded._n_updates == model._n_updates and loaded.policy_kwargs == SMALL["policy_kwargs"]
    assert loaded.actor is loaded.policy.actor and loaded.behavior_value is loaded.policy.behavior_value


def test_training_goes_on_after_loading_as_if_nothing_had_happened(tmp_path):
    model = trained_model()
    model.save(tmp_path / "model")
    loaded = FlowRL.load(tmp_path / "model", env=model.env)
    loaded.replay_buffer = model.replay_buffer
    loaded.set_logger(Logger(None, []))
    results = []
    for each in (model, loaded):
        set_random_seed(11)
        for _ in range(3):
            each.train(2, batch_size=16)
        results.append(parameters(each))
    assert_same(*results)


def test_loading_can_change_how_the_flow_is_integrated(tmp_path):
    model = trained_model()
    model.save(tmp_path / "model")
    loaded = FlowRL.load(tmp_path / "model", flow_steps=4, ode_solver="euler")
    assert loaded.actor.flow_steps == 4 and loaded.actor.ode_solver == "euler"
    with pytest.raises(ValueError, match="flow_steps=0 must be"):
        FlowRL.load(tmp_path / "model", flow_steps=0)


def test_prediction_without_an_environment(tmp_path):
    model = trained_model()
    model.save(tmp_path / "model")
    loaded = FlowRL.load(tmp_path / "model")
    obs = model.observation_space.sample()
    np.testing.assert_array_equal(loaded.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])


def test_a_model_that_counts_episodes_predicts_in_several_environments_but_does_not_learn_there(tmp_path):
    make_model(train_freq=(1, "episode")).save(tmp_path / "model")
    loaded = FlowRL.load(tmp_path / "model", env=make_vec_env("Pendulum-v1", n_envs=2))
    assert loaded.predict(loaded.env.reset())[0].shape == (2, 1)
    with pytest.raises(ValueError, match=r"train_freq=.* counts episodes, .* n_envs=2\. Count steps instead"):
        loaded.learn(10)


def test_learning_goes_on_in_another_environment(tmp_path):
    model = trained_model()
    model.save(tmp_path / "model")
    loaded = FlowRL.load(tmp_path / "model")
    loaded.set_env(make_vec_env("Pendulum-v1", n_envs=1))
    loaded.learn(60, reset_num_timesteps=False)
    assert loaded.num_timesteps == 130 and loaded._n_updates > model._n_updates


def test_exclude_include_and_custom_objects(tmp_path):
    model = trained_model()
    model.save(tmp_path / "model", exclude=["tensorboard_log"], include=["replay_buffer"])
    custom_objects = dict(learning_rate=1e-5, lr_schedule=lambda _: 1e-5)
    loaded = FlowRL.load(tmp_path / "model", env=model.env, custom_objects=custom_objects)
    assert loaded.replay_buffer.size() == model.replay_buffer.size() == 70
    assert loaded.learning_rate == 1e-5 and loaded.lr_schedule(1) == 1e-5


def test_a_callable_guidance_is_saved(tmp_path):
    model = make_model(guidance=lambda q_behavior, q_policy, w2_coef: 0.25 * th.ones_like(q_policy)).learn(60)
    model.save(tmp_path / "model")
    loaded = FlowRL.load(tmp_path / "model", env=model.env)
    assert th.equal(loaded.guidance(th.zeros(2, 1), th.zeros(2, 1), 0.1), th.full((2, 1), 0.25))


def test_networks_are_saved_once(tmp_path):
    model = trained_model()
    model.save(tmp_path / "model")
    excluded = set(model._excluded_save_params())
    assert {*NETWORKS, "policy", "replay_buffer", "_batch_norm_stats"} <= excluded
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        assert len(archive.read("data")) < 100_000


def test_set_parameters_demands_all_of_them():
    model = trained_model()
    given = model.get_parameters()
    optimizers = {f"{name}.optimizer" for name in ("actor", "critic", "behavior_critic", "behavior_value")}
    assert set(given) == {"policy", *optimizers, "spread_coef_optimizer"}
    for name, message in (
        ("behavior_value.optimizer", "Names of parameters do not match"),
        ("spread_coef_optimizer", "learned"),
    ):
        with pytest.raises(ValueError, match=message):
            model.set_parameters({key: value for key, value in given.items() if key != name}, exact_match=True)


class BatchNormExtractor(ScaleExtractor):
    def __init__(self, observation_space):
        super().__init__(observation_space, 1.0)
        self.norm = nn.BatchNorm1d(3)

    def forward(self, observations):
        return self.norm(observations)


def test_batch_norm_statistics_reach_the_targets():
    model = make_model(policy_kwargs=dict(net_arch=[16], features_extractor_class=BatchNormExtractor), tau=0.0).learn(60)
    for online, target in model._target_pairs():
        statistics = online.features_extractor.norm.running_mean
        assert statistics.abs().max() > 0.01
        model._update_targets(th.tensor(model.tau))
        assert th.equal(target.features_extractor.norm.running_mean, statistics)


# ---------------------------------------------------------------------------------------------------------------- prediction


def test_predict_takes_one_observation_or_many_and_plays_inside_the_bounds():
    model = trained_model()
    single = model.observation_space.sample()
    for deterministic in (True, False):
        action, _ = model.predict(single, deterministic=deterministic)
        assert action.shape == (1,) and action in model.action_space
        actions, _ = model.predict(np.stack([single] * 5), deterministic=deterministic)
        assert actions.shape == (5, 1) and all(action in model.action_space for action in actions)
        assert np.ptp(actions) < 1e-5 if deterministic else np.ptp(actions) > 1e-3


def test_evaluate_policy_and_policy_class_as_argument():
    model = FlowRL(FlowActorCriticPolicy, "Pendulum-v1", **SMALL)
    mean, _ = evaluate_policy(model, gym.make("Pendulum-v1"), n_eval_episodes=1, warn=False)
    assert -2_000 < mean < 0


def test_frozen_parameters_stay_and_the_others_learn():
    model = make_model()
    frozen = [*model.actor.velocity_net[0].parameters(), *model.critic.networks[0].parameters()]
    for parameter in frozen:
        parameter.requires_grad_(False)
    before, last = [parameter.clone() for parameter in frozen], model.actor.velocity_net[-1].weight.clone()
    model.learn(60)
    assert all(th.equal(parameter, old) for parameter, old in zip(frozen, before, strict=True))
    assert not th.equal(model.actor.velocity_net[-1].weight, last)


class ScaledActor(FlowActor):
    """Has a parameter of its own."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.scale = nn.Parameter(th.ones(1))

    def velocity(self, t: th.Tensor, features: th.Tensor, x: th.Tensor) -> th.Tensor:
        return self.scale * super().velocity(t, features, x)


class ScaledActorPolicy(FlowActorCriticPolicy):
    def make_actor(self, features_extractor=None) -> FlowActor:
        return ScaledActor(**self._update_features_extractor(self.actor_kwargs, features_extractor)).to(self.device)


def test_parameters_that_a_subclass_adds_are_learned():
    model = FlowRL(ScaledActorPolicy, "Pendulum-v1", **SMALL).learn(60)
    assert model.actor.scale.item() != 1.0


def test_parameters_of_a_model_whose_optimisers_are_not_fused_are_learned_on_from():
    plain = make_model(policy_kwargs=dict(net_arch=[16], optimizer_kwargs=dict(eps=1e-5))).learn(60)
    model = make_model()
    model.set_parameters(plain.get_parameters())
    assert_same(parameters(model), parameters(plain))
    model.learn(60)
    assert not th.equal(model.critic.networks[0].weight, plain.critic.networks[0].weight)


def test_discounts_of_the_replay_buffer_have_to_be_the_models(tmp_path):
    with pytest.raises(ValueError, match=r"3-step returns by gamma=0\.99, but .* has gamma=0\.5.*n_steps=3, gamma=0\.5"):
        make_model(gamma=0.5, replay_buffer_class=NStepRecencyReplayBuffer, replay_buffer_kwargs=dict(n_steps=3))
    make_model(n_steps=3).save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"but the model has gamma=0\.5"):
        FlowRL.load(tmp_path / "model", gamma=0.5)
    again = FlowRL.load(tmp_path / "model", gamma=0.5, replay_buffer_kwargs=dict(n_steps=3, gamma=0.5))
    assert again.replay_buffer.gamma == 0.5
