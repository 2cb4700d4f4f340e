"""The study of exploration: base samples that are held for several steps."""

import numpy as np
from rl_zoo3.utils import ALGOS
from stable_baselines3.common.env_util import make_vec_env

from sb3_flowrl import FlowRL
from studies.arguments import resolve
from studies.exploration.held_noise import MAX_STEPS, HeldNoise, HeldNoiseFlowRL
from studies.study import find_study, load_study
from tests.models import SMALL


def test_samples_are_held_for_as_long_as_the_distribution_says():
    np.random.seed(0)
    noise = HeldNoise(n_envs=3, action_dim=2)
    samples = np.array([noise.next() for _ in range(20_000)])
    for each in samples.swapaxes(0, 1):
        changes = np.flatnonzero((each[1:] != each[:-1]).any(axis=1))
        lengths = np.diff(changes)
        assert lengths.max() == MAX_STEPS
        normalizer = sum(k**-2.0 for k in range(1, MAX_STEPS + 1))
        for k in (1, 2, 4):
            assert abs((lengths == k).mean() - k**-2.0 / normalizer) < 0.02
        starts = each[changes + 1]
        assert abs(starts.mean()) < 0.05 and abs(starts.std() - 1) < 0.05
    assert not np.array_equal(samples[:, 0], samples[:, 1])


def test_exploration_holds_its_noise():
    model = HeldNoiseFlowRL("MlpPolicy", make_vec_env("Pendulum-v1", 2), **SMALL, seed=0)
    model.learn(100)
    model._held_noise.steps_left[:] = [3, 1]  # of both environments, whose observations stay what they are here
    first, second = model._sample_action(0, n_envs=2)[1], model._sample_action(0, n_envs=2)[1]
    assert first[0] == second[0] and first[1] != second[1]
    action, buffered = model._sample_action(0, n_envs=2)
    np.testing.assert_allclose(action, 2 * buffered)  # Pendulum's torques are up to 2


def test_it_learns_like_flowrl_and_starts_with_random_actions():
    models = [algorithm("MlpPolicy", "Pendulum-v1", **SMALL, seed=0) for algorithm in (FlowRL, HeldNoiseFlowRL)]
    for model in models:
        model.learn(SMALL["learning_starts"] + 20)
    actions = [model.replay_buffer.actions[: SMALL["learning_starts"], 0] for model in models]
    np.testing.assert_array_equal(*actions)
    assert models[0]._n_updates == models[1]._n_updates > 0


def test_the_study_is_defined():
    study = load_study(find_study("exploration"))
    assert [run.name for run in study.runs() if run.env == "HalfCheetah-v4" and run.seed == 0] == [
        f"HalfCheetah-v4_{label}_seed0" for label in ("cheap-behavior", "clip-0.25", "held", "held-clip-0.25")
    ]
    held = next(run for run in study.runs() if run.label == "held-clip-0.25")
    assert ALGOS["flowrl_held"] is HeldNoiseFlowRL and resolve(held)["hyperparameters"]["noise_clip"] == 0.25
