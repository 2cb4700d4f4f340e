"""FlowRL as a user of Stable-Baselines3 meets it: training, observations, logs and prediction."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv, SimpleMultiObsEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.utils import LinearSchedule, set_random_seed
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from sb3_flowrl import FlowActorCriticPolicy, FlowRL, losses, paper_arguments, reference_arguments, update, v0_1_arguments
from sb3_flowrl.networks import FlowActor
from tests.models import (
    SMALL,
    ScaleExtractor,
    StepCountingEnv,
    assert_same,
    make_model,
    networks_of,
    parameters,
    trained_model,
)


class Recorder:
    """Records the arguments with which a function of ``losses`` is called."""

    def __init__(self, monkeypatch, function: str):
        self.calls: list[tuple] = []
        original = getattr(losses, function)

        def wrapper(*args, **kwargs):
            self.calls.append(args)
            return original(*args, **kwargs)

        monkeypatch.setattr(losses, function, wrapper)


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


def test_presets_take_overrides_of_arguments_and_of_single_policy_kwargs():
    paper = paper_arguments(6)
    changed = paper_arguments(6, learning_rate=1e-4, seed=3, policy_kwargs=dict(net_arch=[16]))
    assert changed == {
        **paper,
        "learning_rate": 1e-4,
        "seed": 3,
        "policy_kwargs": {**paper["policy_kwargs"], "net_arch": [16]},
    }
    for arguments in (reference_arguments, v0_1_arguments):
        assert arguments(gamma=0.9) == {**arguments(), "gamma": 0.9}


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
    policy_kwargs = dict(net_arch=[16], batch_norm=False)
    model = trained_model(policy_delay=policy_delay, learning_starts=60, delay_behavior=False, policy_kwargs=policy_kwargs)
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
    actor_loss = update.actor_loss
    monkeypatch.setattr(
        update, "actor_loss", lambda *args: gradients.extend(p.grad.clone() for p in values) or actor_loss(*args)
    )
    model.train(1, batch_size=8)
    assert gradients and all(th.equal(before, parameter.grad) for before, parameter in zip(gradients, values, strict=True))


@pytest.mark.parametrize("terminates", [True, False])
def test_terminations_end_the_return_and_time_outs_do_not(terminates, monkeypatch):
    recorder = Recorder(monkeypatch, "bootstrap_target")
    model = make_model(env=gym.wrappers.TimeLimit(StepCountingEnv(terminates), 100), learning_starts=60).learn(70)
    sample = model.replay_buffer.sample(64)
    monkeypatch.setattr(model.replay_buffer, "sample", lambda size, env=None: sample)
    recorder.calls.clear()
    model.train(1, batch_size=64)
    (_, dones, discounts, _), (_, behavior_dones, behavior_discounts, _) = recorder.calls
    last_step = sample.next_observations == 3
    assert last_step.any() and not last_step.all()
    assert th.equal(dones, last_step.float() if terminates else th.zeros_like(dones))
    assert th.equal(dones, behavior_dones)
    assert th.equal(discounts, behavior_discounts) and (discounts == model.gamma).all()


def test_n_step_discounts_reach_both_targets(monkeypatch):
    recorder = Recorder(monkeypatch, "bootstrap_target")
    model = make_model(env=StepCountingEnv(terminates=True), n_steps=2, gamma=0.9, learning_starts=60, delay_behavior=False)
    model.learn(65)
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
    value_loss = update.value_loss
    monkeypatch.setattr(update, "value_loss", lambda *args: seen.append(args[2]) or value_loss(*args))
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
    value_loss = update.value_loss

    def record(*args):
        loss, terms, q_behavior = value_loss(*args)
        recorder.append(terms["critic_loss"].item())
        return loss, terms, q_behavior

    monkeypatch.setattr(update, "value_loss", record)
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


@pytest.mark.parametrize("share_features_extractor", [False, True])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_each_network_extracts_its_own_features_as_in_sb3(batch_norm, share_features_extractor, monkeypatch):
    extractor = dict(features_extractor_class=ScaleExtractor, features_extractor_kwargs=dict(scale=2.0))
    options = dict(batch_norm=batch_norm, share_features_extractor=share_features_extractor)
    model = trained_model(policy_kwargs=dict(net_arch=[8], **options, **extractor))
    calls = []
    forward = ScaleExtractor.forward
    monkeypatch.setattr(ScaleExtractor, "forward", lambda self, obs: calls.append(obs) or forward(self, obs))
    # Of s: Q_π; of s': the actor, and Q_π or its target. With the actor's step also Q_β*, its target and V_β* of s, V_β* of
    # s', the actor, and Q_π in its loss
    for steps_actor, passes in ((False, 3), (True, 9)):
        model._n_updates = 0 if steps_actor else 1
        calls.clear()
        model.train(1, batch_size=8)
        assert len(calls) == passes


def test_a_dict_of_observations_that_is_not_finite_is_named():
    model = FlowRL("MultiInputPolicy", SimpleMultiObsEnv(discrete_actions=False), learning_starts=20, buffer_size=100)
    model.learn(20)
    model.replay_buffer.observations["vec"][:] = np.nan
    with pytest.raises(ValueError, match=r"`observations\['vec'\]` of the replay sample"):
        model.train(1, batch_size=8)


class BatchNormExtractor(ScaleExtractor):
    def __init__(self, observation_space):
        super().__init__(observation_space, 1.0)
        self.norm = nn.BatchNorm1d(3)

    def forward(self, observations):
        return self.norm(observations)


def test_batch_norm_statistics_reach_the_targets():
    policy_kwargs = dict(net_arch=[16], features_extractor_class=BatchNormExtractor)
    model = make_model(policy_kwargs=policy_kwargs, tau=0.0, policy_delay=1).learn(60)
    for online, target, _ in model.policy.averages(model.tau, model.actor_tau):
        statistics = online.features_extractor.norm.running_mean
        assert statistics.abs().max() > 0.01
        assert th.equal(target.features_extractor.norm.running_mean, statistics)


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
