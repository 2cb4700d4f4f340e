"""Publishing agents: the card, the animation and the page of a run's policy."""

import json

import numpy as np
import pytest
from PIL import Image, ImageSequence

from sb3_flowrl import FlowRL
from sb3_flowrl.play import list_agents
from studies import agents
from studies.study import StudyError

CARD = dict(command="python -m studies run x", commits=["abc"], versions={"torch": "2"}, hyperparameters={"tau": 0.9})


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The record and the policy of a run, and empty folders to publish to."""
    pytest.importorskip("pygame")
    monkeypatch.setattr(agents, "AGENTS", tmp_path / "agents")
    monkeypatch.setattr(agents, "IMAGES", tmp_path / "images")
    monkeypatch.setattr(agents, "PAGE", tmp_path / "agents.md")
    monkeypatch.setattr(agents, "STRIP", ("Pendulum-v1",))
    (tmp_path / "agents.md").write_text(f"Before\n{agents.START}\nold\n{agents.END}\nAfter\n")
    points = [dict(step=step, deterministic=returns) for step, returns in ((10, [3, 4]), (20, [3, 4]), (30, [0, 0]))]
    record = dict(run=dict(algo="flowrl", env="Pendulum-v1", seed=7), evaluations=points, **CARD)
    path = tmp_path / "runs" / "Pendulum-v1_flowrl_seed7.json"
    path.parent.mkdir()
    path.write_text(json.dumps(record))
    model = FlowRL("MlpPolicy", "Pendulum-v1", buffer_size=1, seed=0, policy_kwargs=dict(net_arch=[8]))
    model.save_policy_safe(tmp_path / "policy.safetensors")
    return path, tmp_path / "policy.safetensors"


def test_an_agent_is_published_with_its_card_animation_and_page(run, tmp_path):
    agents.publish([run], episodes=2)
    [(env_id, agent)] = list_agents(tmp_path / "agents").items()
    assert (env_id, agent.card["steps"], agent.card["seed"]) == ("Pendulum-v1", 20, 7)  # of the last of the best
    assert CARD.items() <= agent.card.items() and agent.card["run"] == f"{tmp_path.name}/Pendulum-v1_flowrl_seed7"
    assert agent.policy.read_bytes() == run[1].read_bytes()
    assert all(len(agent.card["returns"][mode]["returns"]) == 2 for mode in ("deterministic", "stochastic"))
    page = (tmp_path / "agents.md").read_text()
    assert page.startswith("Before\n") and page.endswith("\nAfter\n") and "old" not in page
    assert f"| Pendulum-v1 | 20 | {agents.grouped(agent.card['returns']['deterministic']['mean'])} ± " in page
    assert agents.grouped(12_345.6) == "12 346"
    for name, height in (("Pendulum-v1", agents.HEIGHT), ("strip", agents.STRIP_HEIGHT)):
        film = Image.open(tmp_path / "images" / f"{name}.gif")
        # frames that are the same count as one
        milliseconds = sum(frame.info["duration"] for frame in ImageSequence.Iterator(film))
        assert film.height == height and milliseconds == 1000 * agents.SECONDS


def test_the_same_agent_gets_the_same_card_again(run, tmp_path):
    agents.publish([run], episodes=2)
    first = {path.name: path.read_bytes() for path in (tmp_path / "agents").iterdir()}
    agents.publish([], episodes=2)
    # stochastic returns are drawn anew
    cards = [json.loads(text) for text in (first["Pendulum-v1.json"], (tmp_path / "agents" / "Pendulum-v1.json").read_bytes())]
    for card in cards:
        del card["returns"]["stochastic"]
    assert cards[0] == cards[1]


def test_adding_an_agent_leaves_the_cards_of_the_others(run, tmp_path):
    agents.publish([run], episodes=2)
    card = tmp_path / "agents" / "Pendulum-v1.json"
    before = card.read_bytes()
    other = tmp_path / "other.json"
    other.write_text(run[0].read_text().replace("Pendulum-v1", "MountainCarContinuous-v0"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(agents, "measure", lambda agent, episodes: dict(deterministic=dict(mean=1.0, std=0.0, returns=[1.0])))
        patch.setattr(agents, "record_frames", lambda agent: [np.zeros((8, 8, 3), np.uint8)] * 4)
        agents.publish([(other, run[1])], episodes=1)
    assert card.read_bytes() == before and (tmp_path / "agents" / "MountainCarContinuous-v0.json").is_file()


def test_only_runs_of_flowrl_with_a_policy_become_agents(run, tmp_path):
    record, policy = run
    with pytest.raises(StudyError, match=r"no file .*nothing.safetensors"):
        agents.add_agent(record, tmp_path / "nothing.safetensors", tmp_path)
    other = tmp_path / "other.json"
    other.write_text(record.read_text().replace("Pendulum-v1", "NoSuchEnv-v0"))
    with pytest.raises(StudyError, match="NoSuchEnv"):
        agents.add_agent(other, policy, tmp_path / "agents")
    assert not (tmp_path / "agents").exists()
    record.write_text(record.read_text().replace('"flowrl"', '"sac"'))
    with pytest.raises(StudyError, match="is a run of sac"):
        agents.add_agent(record, policy, tmp_path)
