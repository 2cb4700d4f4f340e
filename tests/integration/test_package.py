"""The package as it is installed, and that its documents keep step with its code."""

import inspect
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import sb3_flowrl
from sb3_flowrl import FlowActorCriticPolicy, FlowRL

ROOT = Path(__file__).parents[2]


def own_arguments() -> list[str]:
    """FlowRL's arguments that SB3's TD3 does not have."""
    from stable_baselines3 import TD3

    known = inspect.signature(TD3).parameters
    return [name for name in inspect.signature(FlowRL).parameters if name not in known]


def test_version():
    assert sb3_flowrl.__version__ == version("sb3-flowrl")
    assert f"## [{sb3_flowrl.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_it_is_typed():
    assert (Path(sb3_flowrl.__file__).parent / "py.typed").exists()


def test_import_brings_nothing_that_stable_baselines3_does_not():
    program = (
        "import sys, stable_baselines3; before = set(sys.modules); import sb3_flowrl;"
        "print(*sorted(name for name in set(sys.modules) - before if not name.startswith('sb3_flowrl')))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


@pytest.mark.parametrize("module", ["policies", "export"])
def test_nothing_that_plays_a_policy_imports_training_code(module):
    program = f"import sys, sb3_flowrl.{module}; print(*(name for name in sys.modules if name.startswith('sb3_flowrl.')))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    training = {"update", "losses", "buffers", "execution", "flowrl", "diagnostics", "checkpoint"}
    assert not training & {name.partition(".")[2] for name in result.stdout.split()}


def test_constructor_has_td3s_arguments_in_td3s_order():
    from stable_baselines3 import TD3

    td3_only = {"target_policy_noise", "target_noise_clip"}
    td3 = [name for name in inspect.signature(TD3).parameters if name not in td3_only]
    assert [name for name in inspect.signature(FlowRL).parameters if name in td3] == td3


@pytest.mark.parametrize("documented", [FlowRL, FlowActorCriticPolicy])
def test_docstrings_describe_every_argument_in_order(documented):
    described = re.findall(r":param (\w+):", documented.__doc__)
    assert described == list(inspect.signature(documented).parameters)


def test_readme_describes_every_argument_of_our_own():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    policy_arguments = "net_arch activation_fn layer_norm critic_layout n_critics share_features_extractor optimizer_kwargs"
    for name in own_arguments() + policy_arguments.split():
        assert f"| `{name}` |" in readme, name
    for difference in range(1, 12):
        assert f"| D{difference} |" in readme
