"""
What rl_zoo3's ``push_to_hub`` uploads to the Hugging Face hub, completed for FlowRL.

rl_zoo3 knows nothing of this package: its model card would not say how to install the algorithm, and its only policy file is
a pickle.
"""

from pathlib import Path
from typing import Any

import gymnasium as gym
from huggingface_hub import HfApi, ModelCard

#: Packages whose environments rl_zoo3 finds only with ``--gym-packages``.
GYM_PACKAGES = ("sb3_flowrl.envs", "gymnasium_robotics", "panda_gym")
CARD = """
# **FlowRL** agent playing **{env_id}**

A **FlowRL** agent ([Flow-Based Policy for Online Reinforcement Learning](https://arxiv.org/abs/2506.12811)), trained with
sb3-flowrl, [Stable-Baselines3](https://github.com/DLR-RM/stable-baselines3) and the
[RL Zoo](https://github.com/DLR-RM/rl-baselines3-zoo). Mean reward: {mean_reward}.

## Use it

```bash
pip install "sb3-flowrl[zoo,safe]"
```

{safe_policy}The whole model, with the RL Zoo's commands. It is a pickle: load it only if you trust its author.

```bash
TRUST_REMOTE_CODE=True python -m rl_zoo3.load_from_hub --algo flowrl --env {env_id} -orga {organization} -name {name} -f logs/
python -m rl_zoo3.enjoy --algo flowrl --env {env_id} -f logs/{packages}
```

## Train it

```bash
python -m rl_zoo3.train --algo flowrl --env {env_id} -f logs/{packages}
```

"""

SAFE_POLICY = """The policy, from a file without pickles:

```python
from huggingface_hub import hf_hub_download
from sb3_flowrl import FlowRL

policy = FlowRL.load_policy_safe(hf_hub_download("{organization}/{name}", "policy.safetensors"))
action, _ = policy.predict(observation, deterministic=True)
```

"""


class HubApi(HfApi):
    """Hugging Face's client, which completes a FlowRL model's folder before it uploads it."""

    def upload_folder(self, *, repo_id: str, folder_path: str | Path, **kwargs: Any) -> Any:  # type: ignore[override]
        """
        Upload a folder.

        :param repo_id: the organization and the name of the repository
        :param folder_path: the folder
        :param kwargs: other arguments of ``HfApi.upload_folder``
        :return: what ``HfApi.upload_folder`` returns
        """
        complete_folder(Path(folder_path), repo_id)
        return super().upload_folder(repo_id=repo_id, folder_path=folder_path, **kwargs)


def complete_folder(folder: Path, repo_id: str) -> None:
    """
    Add the safe policy file to a folder of ``push_to_hub``, and rewrite its model card.

    A folder without a FlowRL model stays as it is.

    :param folder: the folder that rl_zoo3 made
    :param repo_id: the organization and the name of the repository
    """
    model = next(folder.glob("flowrl-*.zip"), None)
    if model is None:
        return
    card = ModelCard.load(folder / "README.md")
    result = card.data.eval_results[0]
    env_id = result.dataset_name
    organization, name = repo_id.split("/")
    names = dict(env_id=env_id, organization=organization, name=name)

    safe_policy = SAFE_POLICY.format(**names) if _save_policy(model, folder / "policy.safetensors") else ""
    packages = next((f" --gym-packages {package}" for package in GYM_PACKAGES if _is_from(package, env_id)), "")
    text = CARD.format(**names, mean_reward=result.metric_value, safe_policy=safe_policy, packages=packages)
    # rl_zoo3's own lists of hyperparameters and environment arguments come last
    _, heading, hyperparameters = card.text.partition("## Hyperparameters")
    card.text = text + heading + hyperparameters
    card.data.tags += ["sb3-flowrl", "flowrl"]
    card.save(folder / "README.md")


def _is_from(package: str, env_id: str) -> bool:
    return env_id in gym.registry and str(gym.registry[env_id].entry_point).startswith(package)


def _save_policy(model: Path, path: Path) -> bool:
    from sb3_flowrl.export.loading import load_to_predict

    try:
        load_to_predict(model).save_policy_safe(path)
    except (ImportError, ValueError) as error:  # a policy that the file can't describe can still be uploaded as a zip
        print(f"sb3-flowrl: uploading without {path.name}. {error}")
        return False
    return True
