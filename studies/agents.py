"""
Publish trained agents: their safe policy files, cards, animations and the page that shows them.

A run of a study leaves the policy of its best evaluation behind (see ``run.best_policy_of``). ``python -m studies agents``
plays each agent again (with ``--add`` the new ones), and writes everything about the agents that is in the repository::

    agents/<environment>.safetensors       the policy
    agents/<environment>.json              its card
    docs/images/agents/<environment>.gif   five seconds of an episode
    docs/agents.md                         the page with all cards and animations
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sb3_flowrl.execution import own_random_numbers
from sb3_flowrl.export.safe_policy import load_policy_safe
from sb3_flowrl.play import Agent, AgentError, list_agents, make_env, play_episode, save_video

from .records import ROOT, Record, describe_machine, to_json, write_atomically
from .study import StudyError

AGENTS, PAGE, IMAGES = ROOT / "agents", ROOT / "docs" / "agents.md", ROOT / "docs" / "images" / "agents"
#: Episodes of each mode behind a card's returns. Their seeds were not used in training or to choose the policy.
EPISODES, FIRST_SEED = 20, 5_000_000
#: Seconds, height and frames per second of an animation.
SECONDS, HEIGHT, FRAMES_PER_SECOND = 5, 200, 20
#: Height of the README's strip, which must stay below 2 MB, and the share of the frames that it has.
STRIP_HEIGHT, STRIP_EVERY = 150, 2
#: The agents in the strip.
STRIP = ("HalfCheetah-v4", "Humanoid-v4", "dmc/quadruped-walk-v0", "dmc/walker-run-v0")
START, END = "<!-- agents: start -->", "<!-- agents: end -->"


def add_agent(record: Path, policy: Path, folder: Path) -> None:
    """
    Add the agent of a run, in the place of the environment's former one.

    :param record: the run's record
    :param policy: the safe policy file that the run left behind
    :param folder: the folder of the agents
    :raises StudyError: if a file is missing, the run was not FlowRL's, or its environment can't be made here
    """
    for path in (record, policy):
        if not path.is_file():
            raise StudyError(f"There is no file {path}.")
    contents: Record = json.loads(record.read_text(encoding="utf-8"))
    run = contents["run"]
    if run["algo"] != "flowrl":
        raise StudyError(f"{record} is a run of {run['algo']}, and agents are FlowRL's.")
    try:
        make_env(run["env"]).close()
    except AgentError as error:  # before the former agent is overwritten by one that can't be played
        raise StudyError(str(error)) from error
    # Of equal evaluations the run keeps the policy of the last
    best = max(reversed(contents["evaluations"]), key=lambda point: np.mean(point["deterministic"]))
    card = dict(
        env_id=run["env"],
        steps=best["step"],
        seed=run["seed"],
        run=f"{record.parents[1].name}/{record.stem}",  # equal names are in several studies
        command=contents["command"],
        commits=contents["commits"],
        versions=contents["versions"],
        hyperparameters=contents["hyperparameters"],
    )
    path = folder / f"{file_name(run['env'])}.json"
    folder.mkdir(exist_ok=True)
    shutil.copyfile(policy, path.with_suffix(".safetensors"))
    write_atomically(path, to_json(card))


def file_name(env_id: str) -> str:
    """
    Return the name of an agent's files, without a suffix.

    :param env_id: the environment's id
    :return: the id with "-" for "/"
    """
    return env_id.replace("/", "-")


def measure(agent: Agent, episodes: int = EPISODES) -> dict[str, Any]:
    """
    Play an agent's episodes.

    :param agent: the agent
    :param episodes: the number of episodes in each mode
    :return: mean, standard deviation and list of the returns, deterministic and stochastic
    """
    policy, env = load_policy_safe(agent.policy, device="cpu"), make_env(agent.card["env_id"])
    returns = {}
    for mode, deterministic in (("deterministic", True), ("stochastic", False)):
        with own_random_numbers(FIRST_SEED, policy.device):
            played = [play_episode(policy, env, FIRST_SEED + number, deterministic).total for number in range(episodes)]
        returns[mode] = dict(
            mean=round(float(np.mean(played)), 1), std=round(float(np.std(played)), 1), returns=np.round(played, 1).tolist()
        )
    env.close()
    return returns


def record_frames(agent: Agent) -> list[np.ndarray]:
    """
    Record the first seconds of an episode.

    :param agent: the agent
    :return: frames of the same height, at ``FRAMES_PER_SECOND``
    """
    env = make_env(agent.card["env_id"], "rgb_array")
    fps = env.metadata["render_fps"]
    policy = load_policy_safe(agent.policy, device="cpu")
    frames = play_episode(policy, env, FIRST_SEED, max_frames=round(SECONDS * fps)).frames
    env.close()
    chosen = [frames[int(index * fps / FRAMES_PER_SECOND)] for index in range(int(len(frames) * FRAMES_PER_SECOND / fps))]
    return [_resize(frame, HEIGHT) for frame in chosen]


def _resize(frame: np.ndarray, height: int) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.fromarray(frame).resize((height * frame.shape[1] // frame.shape[0], height)))


def make_strip(recorded: Mapping[str, Sequence[np.ndarray]]) -> list[np.ndarray]:
    """
    Put animations side by side.

    :param recorded: the frames of each agent by the id of its environment
    :return: frames of the agents that ``STRIP`` names, as long as the shortest animation
    """
    chosen = [recorded[env_id] for env_id in STRIP if env_id in recorded]
    together = list(zip(*chosen, strict=False))[::STRIP_EVERY]
    return [np.concatenate([_resize(frame, STRIP_HEIGHT) for frame in frames], axis=1) for frames in together]


def grouped(number: float) -> str:
    """
    Write a number as the documentation does.

    :param number: the number
    :return: the rounded number, with a space between thousands
    """
    return f"{number:,.0f}".replace(",", " ")


def describe_page(agents: Mapping[str, Agent]) -> str:
    """
    Write the part of the page that shows the agents.

    :param agents: the agents by the ids of their environments
    :return: Markdown: a table of the cards, and the animations
    """
    lines = [
        "| environment | steps | deterministic | stochastic | seed | run | file |",
        "|---|---|---|---|---|---|---|",
    ]
    pictures = []
    for env_id, (policy, card) in agents.items():
        name = file_name(env_id)
        means = [
            f"{grouped(card['returns'][mode]['mean'])} ± {grouped(card['returns'][mode]['std'])}" for mode in card["returns"]
        ]
        link = f"[{policy.stat().st_size / 1e3:.0f} kB](../agents/{policy.name})"
        lines.append(
            f"| {env_id} | {grouped(card['steps'])} | {' | '.join(means)} | {card['seed']} | `{card['run']}` | {link} |"
        )
        pictures.append(f"![{env_id}](images/agents/{name}.gif)")
    return "\n".join([*lines, "", *pictures])


def publish(added: Sequence[Sequence[Path]], episodes: int = EPISODES) -> None:
    """
    Add agents, play them (without any to add, all agents again), and write the cards, animations and page.

    :param added: records and policies to add
    :param episodes: the number of episodes in each mode
    """
    for record, policy in added:
        add_agent(record, policy, AGENTS)
    IMAGES.mkdir(parents=True, exist_ok=True)
    recorded = {}
    machine = describe_machine()
    for env_id, agent in list_agents(AGENTS).items():
        is_new = not added or "returns" not in agent.card  # an agent that was just added has none
        if is_new or env_id in STRIP:
            recorded[env_id] = record_frames(agent)
        if is_new:
            agent.card["returns"] = measure(agent, episodes)
            agent.card["played_with"] = machine["versions"]
            write_atomically(agent.policy.with_suffix(".json"), to_json(agent.card))
            save_video(recorded[env_id], FRAMES_PER_SECOND, IMAGES / f"{file_name(env_id)}.gif")
            print(f"{env_id}: {agent.card['returns']['deterministic']['mean']:,.0f}", flush=True)
    save_video(make_strip(recorded), FRAMES_PER_SECOND / STRIP_EVERY, IMAGES / "strip.gif")
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    after = rest.partition(END)[2]
    write_atomically(PAGE, f"{before}{START}\n{describe_page(list_agents(AGENTS))}\n{END}{after}")
