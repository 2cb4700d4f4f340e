"""The studies of what the flow is worth: the Gaussian twin, plain imitation, and tasks with several equally good ways."""

import itertools
import json
import math
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from rl_zoo3.utils import ALGOS
from stable_baselines3.common.env_checker import check_env

from sb3_flowrl import FlowRL
from sb3_flowrl.guidance import GUIDANCES
from studies import estimates
from studies import run as run_module
from studies.arguments import resolve
from studies.coverage import entropy, n_ways, success_rate
from studies.records import Folders, write_atomically
from studies.report import write_report
from studies.run import execute
from studies.study import StudyError, find_study, load_study
from studies.worth import GaussianTwin, imitation_guidance
from studies.worth.environments import GOAL_REWARD, MultiGoalEnv, TwoWaysEnv
from tests.models import SMALL, assert_compiles_alike, assert_same, batch_of, moments, noise_of, parameters
from tests.studies.made_up import finish, make_study

PACKAGES = ["studies.worth"]
del GUIDANCES["imitation"]  # for other tests; those here get it from a fixture
MULTI_GOAL, TWO_WAYS = "worth/multi-goal-v0", "worth/two-ways-v0"
TWIN = dict(algo="flowrl_gaussian", hyperparameters=dict(w2_coef=0.0))


@pytest.fixture(autouse=True)
def _imitation(monkeypatch):
    monkeypatch.setitem(GUIDANCES, "imitation", imitation_guidance)


def make_twin(**kwargs) -> Any:
    return GaussianTwin("MlpPolicy", gym.make(MULTI_GOAL), **{**SMALL, "w2_coef": 0.0, "seed": 0, **kwargs})


def features(n: int) -> th.Tensor:
    return th.randn(n, 2, generator=th.Generator().manual_seed(0))


# ------------------------------------------------------------------------------------------------------------ Gaussian twin


def test_twins_action_is_the_tanh_of_mean_and_std_times_the_flows_noise():
    actor = make_twin().learn(60).actor
    states, noise = features(8), th.linspace(-3, 3, 16).reshape(8, 2)
    outputs = actor.gaussian_net(states)
    expected = th.tanh(outputs[:, :2] + outputs[:, 2:].exp() * noise.clamp(-1.0, 1.0))
    assert th.allclose(actor.flow(states, noise), expected)


def test_twins_noise_is_unbounded_where_the_flows_is():
    actor = make_twin(noise_clip=None).actor
    states, noise = features(8), th.full((8, 2), 3.0)
    mean, std = actor.distribution(states)
    assert th.allclose(actor.flow(states, noise), th.tanh(mean + 3.0 * std))


def test_twins_deterministic_action_is_the_tanh_of_the_mean():
    model = make_twin()
    obs = np.array([0.3, -0.2], dtype=np.float32)
    mean, _ = model.actor.distribution(th.as_tensor(obs)[None])
    action, _ = model.predict(obs, deterministic=True)
    assert np.allclose(action, th.tanh(mean)[0].detach().numpy(), atol=1e-6)
    assert not np.allclose(action, model.predict(obs)[0], atol=1e-3)


@pytest.mark.parametrize("output, log_std", [(50.0, 2.0), (-50.0, -20.0), (0.5, 0.5)])
def test_twins_log_std_is_bounded_as_sacs(output, log_std):
    actor = make_twin().actor
    with th.no_grad():
        actor.gaussian_net[-1].weight.zero_()
        actor.gaussian_net[-1].bias.copy_(th.tensor([0.0, 0.0, output, output]))
    _, std = actor.distribution(features(4))
    assert th.allclose(std.log(), th.full((4, 2), log_std))


def test_learning_trains_mean_and_std_of_the_twin():
    model = make_twin().learn(50)
    before = parameters(model)
    model.train(1, 32)
    after = parameters(model)
    changed = {name for name, value in after.items() if not th.equal(value, before[name])}
    last = f"actor.gaussian_net.{len(model.actor.gaussian_net) - 1}"
    for name in (f"{last}.weight", f"{last}.bias"):
        mean, log_std = (after[name] - before[name]).chunk(2)
        assert (mean != 0).all() and (log_std != 0).all()
    assert all(
        any(name.startswith(model_) for name in changed) for model_ in ("critic.", "behavior_critic.", "behavior_value.")
    )


def test_twin_has_no_flow():
    model = make_twin()
    assert not any("velocity" in name for name in parameters(model))
    others = make_twin(flow_steps=4, ode_solver="rk4")
    others.policy.load_state_dict(model.policy.state_dict())
    states, noise = features(8), th.randn(8, 2)
    assert th.equal(model.actor.flow(states, noise), others.actor.flow(states, noise))
    velocity = model.actor.velocity(th.rand(8, 1), states, noise)
    assert velocity.shape == noise.shape and not velocity.requires_grad and not velocity.any()


def test_twin_with_a_constraint_is_refused():
    with pytest.raises(ValueError, match=r"w2_coef=0\.1 must be 0 for the Gaussian twin.*Write `w2_coef: 0\.0`"):
        make_twin(w2_coef=0.1)


def test_twin_is_flowrl_but_for_its_actor():
    flowrl = partial(FlowRL, "MlpPolicy", gym.make(MULTI_GOAL), **{**SMALL, "w2_coef": 0.0, "seed": 0})
    seen = []
    for make in (make_twin, flowrl):
        model = make().learn(50)
        networks = {name: value for name, value in parameters(model).items() if "actor." not in name}
        drawn = [model.replay_buffer.actions[:50], *batch_of(model, 32)[:5], *noise_of(model, 8)]
        optimizer = model.actor.optimizer
        options = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
        seen.append((networks, drawn, type(optimizer), options, type(model).train))
    (ours, drawn, *rest), (theirs, their_drawn, *their_rest) = seen
    # The same first weights of critics and values, first actions, samples and base samples of the updates
    assert_same(ours, theirs)
    assert all(np.array_equal(one, other) for one, other in zip(drawn, their_drawn, strict=True))
    assert rest == their_rest


def test_twin_is_what_it_was_when_it_is_loaded(tmp_path):
    model = make_twin().learn(60)
    model.save(tmp_path / "twin.zip")
    loaded = GaussianTwin.load(tmp_path / "twin.zip", env=model.env)
    assert_same(parameters(loaded), parameters(model))
    assert_same(moments(loaded), moments(model))
    assert type(loaded.actor) is type(model.actor) and loaded.w2_coef == 0.0


# ---------------------------------------------------------------------------------------------------------------- imitation


def make_imitator(**kwargs) -> FlowRL:
    return FlowRL("MlpPolicy", gym.make(MULTI_GOAL), **{**SMALL, "seed": 0, "guidance": "imitation", **kwargs})


@pytest.mark.slow
@pytest.mark.parametrize("make", [make_twin, make_imitator])
def test_what_the_study_adds_compiles_and_learns_the_same(make, monkeypatch, recwarn):
    assert_compiles_alike(make, monkeypatch)
    assert not [warning for warning in recwarn if "could not be compiled" in str(warning.message)]


def test_imitation_weighs_all_actions_alike_whatever_their_value():
    q_behavior, q_policy = th.tensor([[-100.0], [0.0], [100.0]]), th.tensor([[5.0], [0.0], [-5.0]])
    assert th.equal(imitation_guidance(q_behavior, q_policy, 0.1), th.full((3, 1), 0.1))


def test_flowrl_imitates_by_the_name_of_the_guidance(tmp_path):
    model = make_imitator(w2_coef=0.3).learn(60)
    assert model.logger.name_to_value["train/guidance_weight"] == pytest.approx(0.3)
    model.save(tmp_path / "imitator.zip")
    assert FlowRL.load(tmp_path / "imitator.zip").guidance == "imitation"


# ------------------------------------------------------------------------------------------------------------------ studies


def test_studies_compare_these_algorithms():
    shared = {
        "policy",
        "n_timesteps",
        "policy_kwargs",
        "precision",
        "compile",
        "learning_starts",
        "actor_tau",
        "delay_behavior",
    }
    for name, steps in (("worth", 100_000), ("worth_modes", 20_000)):
        study = load_study(find_study(name))
        assert (study.steps, study.seeds, study.baselines) == (steps, [20, 21, 22], ["gaussian"])
        first = {run.label: resolve(run) for run in study.runs() if run.env == study.environments[0] and run.seed == 20}
        asked = {
            label: {key: value for key, value in made_with["hyperparameters"].items() if key not in shared}
            for label, made_with in first.items()
        }
        assert asked == {
            "flowrl": {},
            "flowrl-unconstrained": {"w2_coef": 0.0},
            "flowrl-imitation": {"guidance": "imitation"},
            "flowrl-4steps": {"flow_steps": 4},
            "gaussian": {"w2_coef": 0.0},
        }
        # The same defaults of constructor and policy
        assert all(made_with["defaults"] == first["flowrl"]["defaults"] for made_with in first.values())


def test_twin_reads_flowrls_hyperparameters(tmp_path):
    study = make_study(
        tmp_path,
        environments=["Swimmer-v4"],
        gym_packages=PACKAGES,
        algorithms=dict(flowrl=None, twin=TWIN),
        baselines=["twin"],
    )
    assert [resolve(run)["hyperparameters"]["gamma"] for run in study.runs()] == [0.995, 0.995]


def test_module_that_a_study_names_may_register_algorithms(tmp_path, monkeypatch):
    (tmp_path / "adds_an_algorithm.py").write_text(
        "from rl_zoo3.utils import ALGOS\nfrom sb3_flowrl import FlowRL\nALGOS['added'] = FlowRL\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(ALGOS, "added", None)  # so that it is gone afterwards
    monkeypatch.delitem(ALGOS, "added")
    with pytest.raises(StudyError, match="rl_zoo3 has no algorithm 'added'"):
        make_study(tmp_path, algorithms=dict(added=None), baselines=["added"])
    study = make_study(tmp_path, algorithms=dict(added=None), baselines=["added"], gym_packages=["adds_an_algorithm"])
    assert study.runs()[0].algo == "added"


class Interrupted(Exception):
    """Stands for a kill."""


def test_interrupted_run_of_the_twin_ends_as_if_it_had_not_been(tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "CHECKPOINT_EVERY", 100)
    [run] = make_study(
        tmp_path,
        environments=[MULTI_GOAL],
        gym_packages=PACKAGES,
        algorithms=dict(twin=TWIN),
        baselines=["twin"],
        steps=300,
        evaluation=dict(every=100, episodes=3),
    ).runs()
    whole = execute(run, tmp_path / "whole")
    with monkeypatch.context() as patch:

        def note_progress(scratch: Path) -> Callable[[int], None]:
            def tell(step: int) -> None:
                if step == 250:
                    raise Interrupted

            return tell

        patch.setattr(run_module, "note_progress", note_progress)
        with pytest.raises(Interrupted):
            execute(run, tmp_path / "interrupted")
    resumed = execute(run, tmp_path / "interrupted")
    assert len(resumed["resumed_at"]) == 1 and 0 < resumed["resumed_at"][0] <= 250
    assert [{**point, "seconds": 0} for point in resumed["evaluations"]] == [
        {**point, "seconds": 0} for point in whole["evaluations"]
    ]


# ------------------------------------------------------------------------------------------------------------- environments


def play(env: Any, actions: Any, seed: int = 0) -> tuple[np.ndarray, list[float], str | None]:
    """The positions, the rewards and the way of an episode, which ends with the actions at the latest."""
    obs, _ = env.reset(seed=seed)
    seen, rewards, way = [obs], [], None
    for action in actions:
        obs, reward, terminated, truncated, info = env.step(action)
        seen.append(obs)
        rewards.append(float(reward))
        way = info["way"]
        assert info["is_success"] == terminated == (way is not None)
        if terminated or truncated:
            break
    return np.array(seen), rewards, way


def random_actions(seed: int, n_steps: int = 40) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1.0, 1.0, (n_steps, 2)).astype(np.float32)


def towards(*goals: tuple[float, float], step: float) -> Iterator[np.ndarray]:
    """Actions that lead from the start through these displacements, one after the other, as fast as the steps allow."""
    for goal in goals:
        displacement = np.array(goal)
        n_steps = math.ceil(np.abs(displacement).max() / step)
        yield from itertools.repeat((displacement / step / n_steps).astype(np.float32), n_steps)


@pytest.mark.parametrize("env_id", [MULTI_GOAL, TWO_WAYS])
def test_environment_is_as_gymnasium_asks(env_id):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make(env_id).unwrapped)


@pytest.mark.parametrize("env_id", [MULTI_GOAL, TWO_WAYS])
def test_environment_is_deterministic_and_ends_in_time(env_id):
    env = gym.make(env_id)
    limit = env.spec.max_episode_steps
    still = np.zeros((limit, 2), np.float32)
    *_, (seen, rewards, way) = (play(env, still, seed) for seed in (0, 1))
    assert len(rewards) == limit and way is None and (seen == seen[0]).all() and set(rewards) == {-1.0}
    for first, second in zip(play(env, random_actions(0), 0), play(gym.make(env_id), random_actions(0), 1), strict=True):
        assert np.array_equal(first, second)


TURNS = {"right": [[1, 0], [0, 1]], "up": [[0, -1], [1, 0]], "left": [[-1, 0], [0, -1]], "down": [[0, 1], [-1, 0]]}
MIRROR = [[1, 0], [0, -1]]
NAMES = list(TURNS)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("turn", TURNS)
def test_four_goals_are_equal_to_the_last_bit(turn, mirrored):
    symmetry = np.array(TURNS[turn]) @ (np.array(MIRROR) if mirrored else np.eye(2, dtype=int))
    for seed in range(100):
        actions = random_actions(seed)
        # Most reach no goal by chance; these are pushed to the right
        actions[:, 0] = np.abs(actions[:, 0]) if seed % 2 else actions[:, 0]
        seen, rewards, way = play(MultiGoalEnv(), actions)
        others, their_rewards, their_way = play(MultiGoalEnv(), actions @ symmetry.T.astype(np.float32))
        assert np.array_equal(others, seen @ symmetry.T) and their_rewards == rewards
        index = None if way is None else NAMES.index(way)
        if index is None:
            assert their_way is None
        else:
            mirrored_index = -index % 4 if mirrored else index
            assert their_way == NAMES[(mirrored_index + NAMES.index(turn)) % 4]


def test_each_of_four_goals_is_reached_and_pays_the_same():
    returns = {}
    for name, goal in MultiGoalEnv.GOALS.items():
        _, rewards, way = play(MultiGoalEnv(), towards(goal, step=MultiGoalEnv.STEP))
        assert way == name
        returns[name] = sum(rewards)
    assert len(set(returns.values())) == 1 and 0 < returns["up"] < GOAL_REWARD


def test_two_ways_are_equal_to_the_last_bit():
    mirror = np.array([-1.0, 1.0], np.float32)
    ways = set()
    for seed in range(200):
        actions = random_actions(seed)
        actions[:, 1] = np.abs(actions[:, 1]) if seed % 2 else actions[:, 1]
        seen, rewards, way = play(TwoWaysEnv(), actions)
        others, their_rewards, their_way = play(TwoWaysEnv(), actions * mirror)
        assert np.array_equal(others, seen * mirror) and their_rewards == rewards
        assert their_way == {"left": "right", "right": "left", None: None}[way]
        ways.add(way)
    assert ways == {"left", "right", None}


def test_both_ways_lead_around_the_wall_and_pay_the_same():
    returns = {}
    for name, side in {"left": -1, "right": 1}.items():
        route = [(side * 0.45, 0.4), (0.0, 0.4), (-side * 0.45, 0.4)]
        _, rewards, way = play(TwoWaysEnv(), towards(*route, step=TwoWaysEnv.STEP))
        assert way == name
        returns[name] = sum(rewards)
    assert returns["left"] == returns["right"] and 0 < returns["left"] < GOAL_REWARD


def test_way_is_the_side_of_the_last_passage():
    around = [(-0.45, 0.4), (0.0, 0.4), (0.0, -0.4), (0.9, 0.0), (0.0, 0.4), (-0.45, 0.4)]
    assert play(TwoWaysEnv(), towards(*around, step=TwoWaysEnv.STEP))[2] == "right"


def test_no_step_leads_through_the_wall():
    env = TwoWaysEnv()
    for up in (1.0, 0.9, 0.8):
        seen, _, way = play(env, [np.array([0.0, up], np.float32)] * 40)
        assert way is None and (seen[:, 1] <= -env.WALL[1]).all()
    for seed in range(100):
        actions = random_actions(seed, 100)
        actions = np.sign(actions) * np.sqrt(np.abs(actions))  # longer steps
        seen, _, _ = play(env, actions)
        inside = (np.abs(seen[:, 0]) < env.WALL[0] - 1e-6) & (np.abs(seen[:, 1]) < env.WALL[1] - 1e-6)
        crossed = seen[:-1, 1] * seen[1:, 1] < 0
        at = np.minimum(np.abs(seen[:-1, 0]), np.abs(seen[1:, 0]))
        assert not inside.any() and (at[crossed] > env.WALL[0] - env.STEP - 1e-6).all()
        assert (np.abs(seen) <= 1.0).all()


def test_the_point_slides_along_the_wall():
    seen, _, _ = play(TwoWaysEnv(), [np.array([0.5, 1.0], np.float32)] * 4)
    assert seen[3][1] == seen[2][1] < 0 and seen[3][0] > seen[2][0]


@pytest.mark.parametrize("env", [MultiGoalEnv(), TwoWaysEnv()], ids=["multi-goal", "two-ways"])
def test_cost_is_a_length_of_ways(env: Any):
    """From one free point to the next it changes by no more than the step's length: it is nowhere cut off, or torn."""
    grid = np.linspace(-1.0, 1.0, 81)
    free = [np.array(point) for point in itertools.product(grid, grid)]
    if isinstance(env, TwoWaysEnv):
        free = [point for point in free if np.abs(point[0]) > env.WALL[0] or np.abs(point[1]) > env.WALL[1]]
    distances = {tuple(np.round(point, 6)): env._distance(point) for point in free}
    width = grid[1] - grid[0]
    for x, y in distances:
        for neighbor in ((round(x + width, 6), y), (x, round(y + width, 6))):
            if neighbor in distances:
                assert abs(distances[x, y] - distances[neighbor]) <= width + 1e-9
    assert all(distance >= 0 for distance in distances.values())


@pytest.mark.parametrize(
    "env, limit, n_ways_there_are", [(MultiGoalEnv(), 30, 4), (TwoWaysEnv(), 40, 2)], ids=["multi-goal", "two-ways"]
)
def test_random_actions_find_all_ways_in_the_end(env, limit, n_ways_there_are):
    ways = {play(env, random_actions(seed, limit))[2] for seed in range(300)}
    assert len(ways - {None}) == n_ways_there_are and None in ways


# ----------------------------------------------------------------------------------------------------------------- coverage


def test_coverage_counts_the_ways_of_episodes_that_succeeded():
    even = ["right", "up", None, "left", "down"]
    assert (success_rate(even), n_ways(even), entropy(even)) == (0.8, 4, 2.0)
    assert entropy(["left"] * 3 + ["right"]) == pytest.approx(0.811278)
    for one_way in (["left", "left", None], [None, None]):
        assert (n_ways(one_way), entropy(one_way)) == (int("left" in one_way), 0.0)
    assert str(entropy(["left"])) == "0.0"  # and not -0.0


class TellingEnv(gym.Env):
    """The lengths of its episodes are random, and are the returns and the ways, too."""

    observation_space = action_space = spaces.Box(-1.0, 1.0, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.length = self.steps_left = int(self.np_random.integers(1, 9))
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.steps_left -= 1
        is_over = self.steps_left == 0
        return np.zeros(1, np.float32), 1.0, is_over, False, dict(way=f"{self.length:.1f}" if is_over else "not yet")


@pytest.fixture
def telling_env() -> Iterator[str]:
    gym.register("telling-v0", entry_point=f"{__name__}:TellingEnv")
    yield "telling-v0"
    del gym.registry["telling-v0"]


def test_evaluation_keeps_the_ways_of_its_episodes_in_the_order_of_the_returns(telling_env, tmp_path):
    [run] = make_study(
        tmp_path,
        environments=[telling_env],
        algorithms=dict(flowrl=None),
        baselines=["flowrl"],
        steps=100,
        evaluation=dict(every=50, episodes=6),
    ).runs()
    record = json.loads(json.dumps(execute(run, tmp_path / "run")))
    for point in record["evaluations"]:
        assert point["ways"] == {mode: [str(each) for each in point[mode]] for mode in ("deterministic", "stochastic")}
        assert len(set(point["ways"]["stochastic"])) > 1


WAYS_AT_THE_END = {0: ["up", "down", None, "up"], 1: ["left", "left", "left", "left"]}


def add_ways(path: Path, seed: int) -> None:
    """Let a run's evaluations have taken no way at first, and these at the end."""
    record = json.loads(path.read_text())
    for point in record["evaluations"]:
        is_last = point is record["evaluations"][-1]
        point["ways"] = dict(deterministic=["up"] * 4, stochastic=WAYS_AT_THE_END[seed] if is_last else [None] * 4)
    write_atomically(path, json.dumps(record))


def test_report_tells_of_coverage_where_environments_do(tmp_path, monkeypatch):
    monkeypatch.setattr(estimates, "REPLICATIONS", 50)
    study = make_study(
        tmp_path,
        environments=[MULTI_GOAL, "Pendulum-v1"],
        gym_packages=PACKAGES,
        algorithms=dict(flowrl=None, twin=TWIN),
        baselines=["twin"],
        seeds=[0, 1],
        evaluation=dict(every=200, episodes=4),
    )
    folders = Folders(tmp_path / "results", tmp_path / "work")
    for run in study.runs():
        finish(study, run, folders, final=5.0, random=-20.0)
        if (run.env, run.label) == (MULTI_GOAL, "flowrl"):
            add_ways(folders.record(study.name, run), run.seed)
    markdown, html = (path.read_text() for path in write_report(study, folders))
    section = markdown.split("## Coverage of equally good ways")[1].split("##")[0]
    rows = [line for line in section.splitlines() if line.startswith("| worth")]
    # Entropies 0.92 (two of one way and one of another) and 0; over all three evaluations a third of that
    links = ", ".join(
        f"{seed}: [{value}](runs/worth-multi-goal-v0_flowrl_seed{seed}.json)" for seed, value in ((0, "0.92"), (1, "0.00"))
    )
    assert f"| {MULTI_GOAL} | flowrl | stochastic | 0.88 | 1.5 | 0.46 | 0.15 | {links} |" in rows
    assert len(rows) == 2 and "Pendulum" not in section and "Coverage of equally good ways" in html
