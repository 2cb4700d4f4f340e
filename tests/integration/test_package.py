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


#: Arguments of the policy that SB3 or ``FlowRL`` fills in.
SET_BY_FLOWRL = {"observation_space", "action_space", "lr_schedule", "flow_steps", "ode_solver", "noise_clip", "average_actor"}


def test_version():
    assert sb3_flowrl.__version__ == version("sb3-flowrl")
    assert f"## [{sb3_flowrl.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_it_is_typed():
    assert (Path(sb3_flowrl.__file__).parent / "py.typed").exists()


def test_import_brings_nothing_that_stable_baselines3_does_not():
    program = (
        "import sys, stable_baselines3; before = set(sys.modules); from sb3_flowrl import FlowRL;"
        "print(*sorted(name for name in set(sys.modules) - before if not name.startswith('sb3_flowrl')))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


@pytest.mark.parametrize("module", ["policies", "export"])
def test_nothing_that_plays_a_policy_imports_training_code(module):
    program = f"import sys, sb3_flowrl.{module}; print(*(name for name in sys.modules if name.startswith('sb3_flowrl.')))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    training = {"update", "losses", "buffers", "flowrl", "diagnostics", "checkpoint"}
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


def test_the_site_tables_every_argument_once():
    page = (ROOT / "docs" / "arguments.md").read_text(encoding="utf-8")
    for documented, set_by_others in ((FlowRL, {"_init_setup_model"}), (FlowActorCriticPolicy, SET_BY_FLOWRL)):
        tables = re.findall(rf"argument-table:: sb3_flowrl\.{documented.__name__}\n(.*?)```", page, re.DOTALL)
        arguments = inspect.signature(documented).parameters.keys() - set_by_others
        assert sorted(" ".join(tables).split()) == sorted(arguments)


def test_the_differences_of_paper_and_code_are_tabled_once():
    pages = "".join(page.read_text(encoding="utf-8") for page in [ROOT / "README.md", *ROOT.glob("docs/*.md")])
    assert re.findall(r"^\| (D\d+) \|", pages, re.MULTILINE) == [f"D{number}" for number in range(1, 12)]


def test_the_readme_is_short_and_marks_its_commands():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 150
    assert re.findall(r"^<!-- ci: (\w+) -->\n```bash\n.+\n```$", readme, re.MULTILINE) == ["install", "test"]
