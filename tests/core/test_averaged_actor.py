"""The moving average of the actor, which deterministic predictions play."""

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.torch_layers import FlattenExtractor

from sb3_flowrl import FlowRL, paper_arguments, reference_arguments, v0_1_arguments
from sb3_flowrl.checkpoint.callback import ResumableCheckpointCallback
from sb3_flowrl.export.onnx import export_onnx
from tests.models import assert_same, make_model, parameters, trained_model


def flat(module: th.nn.Module) -> th.Tensor:
    return th.nn.utils.parameters_to_vector(module.parameters()).detach().clone()


def test_it_starts_as_the_actor_and_follows_at_each_of_its_steps():
    model = make_model(actor_tau=0.25, policy_delay=2)
    model.learn(50)
    expected = flat(model.averaged_actor)
    assert th.equal(expected, flat(model.actor))
    for _ in range(6):
        n_updates = model._n_updates
        model.train(1, 32)
        if n_updates % 2 == 0:
            expected = 0.75 * expected + 0.25 * flat(model.actor)
        th.testing.assert_close(flat(model.averaged_actor), expected)
    assert not th.allclose(expected, flat(model.actor), atol=1e-4)


def test_deterministic_predictions_play_it_and_exploration_the_actor():
    model = trained_model()
    obs = model.observation_space.sample()
    with th.no_grad():
        model.averaged_actor.velocity_net[-1].bias.fill_(100.0)
    assert model.predict(obs, deterministic=True)[0] == model.action_space.high
    assert not any(model.predict(obs)[0] == model.action_space.high for _ in range(20))
    assert (model.actor.predict(obs, deterministic=True)[0] != model.action_space.high).all()


class ExtractorWithMean(FlattenExtractor):
    """Features less the mean of all observations so far, which is a buffer."""

    def __init__(self, observation_space):
        super().__init__(observation_space)
        self.register_buffer("mean", th.zeros(self.features_dim))

    def forward(self, observations):
        features = super().forward(observations)
        if self.training:
            self.mean.lerp_(features.detach().mean(dim=0), 0.1)
        return features - self.mean


def test_it_has_the_buffers_of_a_features_extractor_of_the_users():
    policy_kwargs = dict(net_arch=[16], features_extractor_class=ExtractorWithMean)
    model = make_model(policy_delay=1, policy_kwargs=policy_kwargs).learn(70)
    mean = model.actor.features_extractor.mean
    assert mean.abs().min() > 0 and th.equal(model.averaged_actor.features_extractor.mean, mean)


def test_without_it_the_deterministic_action_is_the_actors():
    model = trained_model(actor_tau=None)
    assert model.averaged_actor is None and not any("averaged" in name for name in parameters(model))
    obs = model.observation_space.sample()
    assert model.predict(obs, deterministic=True)[0] == model.actor.predict(obs, deterministic=True)[0]


@pytest.mark.parametrize("share_features_extractor", [False, True])
def test_it_changes_nothing_in_training(share_features_extractor):
    arguments = dict(policy_kwargs=dict(net_arch=[16], share_features_extractor=share_features_extractor))
    with_it, without = (parameters(trained_model(actor_tau=tau, **arguments)) for tau in (0.01, None))
    assert_same({name: value for name, value in with_it.items() if not name.startswith("averaged_actor")}, without)


def test_it_is_saved_and_goes_on_after_loading(tmp_path):
    model = trained_model()
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = FlowRL.load(tmp_path / "model", env=model.get_env())
    assert loaded.actor_tau == 0.01
    assert_same(parameters(loaded), parameters(model))
    loaded.load_replay_buffer(tmp_path / "buffer")
    loaded.set_logger(model.logger)
    before = flat(loaded.averaged_actor)
    loaded.train(2, 32)
    assert not th.equal(flat(loaded.averaged_actor), before)


def test_it_is_the_same_in_a_resumed_run(tmp_path):
    def run(folder, *steps):
        model = make_model()
        for n in steps:
            model.learn(n, callback=ResumableCheckpointCallback(folder, 200), reset_num_timesteps=False)
            model = FlowRL.load_checkpoint(folder, "Pendulum-v1")
        return parameters(model)

    assert_same(run(tmp_path / "a", 400), run(tmp_path / "b", 200, 200))


def test_a_policy_alone_keeps_it(tmp_path):
    model = trained_model()
    model.policy.save(tmp_path / "policy.pkl")
    loaded = type(model.policy).load(tmp_path / "policy.pkl")
    assert th.equal(flat(loaded.averaged_actor), flat(model.averaged_actor))


def test_files_for_inference_hold_it(tmp_path):
    model = trained_model(actor_tau=0.1)
    obs = np.stack([model.observation_space.sample() for _ in range(8)])
    expected = model.predict(obs, deterministic=True)[0]
    assert not np.array_equal(expected, model.actor.predict(obs, deterministic=True)[0])
    model.save_policy_safe(tmp_path / "policy.safetensors")
    np.testing.assert_array_equal(
        FlowRL.load_policy_safe(tmp_path / "policy.safetensors").predict(obs, deterministic=True)[0], expected
    )


def test_onnx_holds_it(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    model = trained_model(actor_tau=0.1)
    export_onnx(model, tmp_path / "policy.onnx")
    obs = np.stack([model.observation_space.sample() for _ in range(8)])
    session = onnxruntime.InferenceSession(str(tmp_path / "policy.onnx"))
    (action,) = session.run(None, {"observation": obs, "noise": np.zeros((8, 1), np.float32)})
    np.testing.assert_allclose(action, model.predict(obs, deterministic=True)[0], rtol=1e-4, atol=1e-5)


def test_parameters_of_a_model_without_it_start_it_as_their_actor():
    model, other = make_model(), trained_model(actor_tau=None)
    model.set_parameters(other.get_parameters())
    assert th.equal(flat(model.averaged_actor), flat(other.actor))


def test_loading_can_begin_and_end_it(tmp_path):
    with_it, without = trained_model(), trained_model(actor_tau=None)
    with_it.save(tmp_path / "with")
    without.save(tmp_path / "without")
    begun = FlowRL.load(tmp_path / "without", env=without.get_env(), actor_tau=0.5)
    assert th.equal(flat(begun.averaged_actor), flat(without.actor))
    ended = FlowRL.load(tmp_path / "with", env=with_it.get_env(), actor_tau=None)
    assert ended.averaged_actor is None and th.equal(flat(ended.actor), flat(with_it.actor))
    for model in (begun, ended):
        model.learn(60, reset_num_timesteps=False)


def test_a_file_without_it_is_what_it_was(tmp_path):
    model = trained_model(actor_tau=None)
    del model.actor_tau
    model.save(tmp_path / "older")
    loaded = FlowRL.load(tmp_path / "older", env=model.get_env())
    assert loaded.actor_tau is None and loaded.averaged_actor is None


def test_its_weight_may_change_in_a_model():
    model = trained_model(actor_tau=0.01)
    model.actor_tau = None
    model.learn(20, reset_num_timesteps=False)
    assert_same(dict(model.averaged_actor.named_parameters()), dict(model.actor.named_parameters()))
    without = trained_model(actor_tau=None)
    without.actor_tau = 0.01
    with pytest.raises(ValueError, match=r"actor_tau=0.01 needs a moving average.*FlowRL.load\(path, env, actor_tau=0.01\)"):
        without.learn(20, reset_num_timesteps=False)


def test_it_takes_no_step_from_a_loss_that_is_not_finite():
    model = trained_model()
    before = flat(model.averaged_actor)
    model.target_spread = float("nan")
    with th.no_grad():
        model.log_spread_coef.fill_(float("nan"))
    with pytest.raises(ValueError):
        model.train(1, 32)
    assert th.equal(flat(model.averaged_actor), before)


def test_presets_say_whether_there_is_one():
    for arguments in (paper_arguments(6), reference_arguments(), v0_1_arguments()):
        assert arguments["actor_tau"] is None
    assert make_model().actor_tau == 0.01


def test_parameters_of_the_actor_alone_are_played():
    model, other = make_model(), make_model(seed=1)
    model.set_parameters({"actor": other.actor.state_dict()}, exact_match=False)
    assert_same(model.averaged_actor.state_dict(), other.actor.state_dict())
