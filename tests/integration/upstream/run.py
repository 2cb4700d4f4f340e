"""
Run Stable-Baselines3's own tests with FlowRL in the place of TD3 or of SAC.

    python tests/integration/upstream/run.py TD3
    python tests/integration/upstream/run.py SAC

The tests are those of the installed version, from its source distribution on PyPI. What is left out is listed below with the
reason. Arguments after the class are passed on to pytest.
"""

import argparse
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

#: The files that test what an off-policy algorithm owes its users.
FILES = (
    "test_callbacks test_cnn test_custom_policy test_deterministic test_dict_env test_her test_logger test_n_step_replay "
    "test_predict test_run test_save_load test_spaces test_tensorboard test_train_eval_mode test_vec_normalize"
).split()

_OWN_ARGUMENT = "passes an argument of that class alone"
_TARGET_ACTOR = "looks at TD3's target actor; FlowRL's targets use the online actor, as the paper does"
_NAME = "expects TensorBoard's run to be named after that class"
_GSDE = "state-dependent exploration needs an action distribution, which a flow has not"

#: What is left out: a part of a test's id, and why.
EXCLUDED: dict[str, dict[str, str]] = {
    "TD3": {
        "test_features_extractor_target_net": _TARGET_ACTOR,
        "test_td3_train_with_batch_norm": _TARGET_ACTOR,
        "test_offpolicy_collect_rollout_batch_norm": _TARGET_ACTOR,
        "test_predict_with_dropout_batch_norm": _TARGET_ACTOR,
        "test_tensorboard[td3]": _NAME,
    },
    "SAC": {
        "test_sac": _OWN_ARGUMENT,
        "test_offpolicy_multi_env": _GSDE,
        "test_save_load_policy[True": _GSDE,
        "test_save_load[True": _GSDE,
        "test_tensorboard[sac]": _NAME,
    },
}

#: Defaults of the replaced class that its tests take for granted: slow targets, one actor that both explores and gives the
#: deterministic actions, and of SAC an actor step at every update. Both have a target of their critic, which FlowRL's has not
#: where it is normalized by batch.
ARGUMENTS: dict[str, dict[str, float | None]] = {
    "TD3": {"tau": 0.005, "actor_tau": None},
    "SAC": {"tau": 0.005, "actor_tau": None, "policy_delay": 1},
}

CONFTEST = """
import stable_baselines3
from sb3_flowrl import FlowRL, policies

policies.POLICY_DEFAULTS["batch_norm"] = False
EXCLUDED, ARGUMENTS = {excluded!r}, {arguments!r}


class FlowRLInstead(FlowRL):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **{{**ARGUMENTS, **kwargs}})


stable_baselines3.{replaced} = FlowRLInstead


def pytest_collection_modifyitems(config, items):
    mine = [item for item in items if any(word in item.nodeid for word in ("FlowRLInstead", "{replaced}", "{lower}"))]
    kept = [item for item in mine if not any(part in item.nodeid for part in EXCLUDED)]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept
"""


def fetch_tests(folder: Path) -> Path:
    """
    :param folder: where to unpack
    :return: the folder of the upstream tests
    """
    requirement = f"stable-baselines3=={version('stable-baselines3')}"
    pip_download = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", "-d", str(folder)]
    subprocess.run([*pip_download, requirement], check=True)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, members=[member for member in tar if "/tests/" in member.name])
    (tests,) = folder.glob("*/tests")
    return tests


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("replaced", choices=EXCLUDED)
    args, pytest_arguments = parser.parse_known_args()
    replaced = args.replaced
    with tempfile.TemporaryDirectory() as folder:
        tests = fetch_tests(Path(folder))
        conftest = CONFTEST.format(
            replaced=replaced, lower=replaced.lower(), excluded=list(EXCLUDED[replaced]), arguments=ARGUMENTS[replaced]
        )
        (tests.parent / "conftest.py").write_text(conftest)
        files = [str(tests / f"{name}.py") for name in FILES]
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files, *pytest_arguments]
        return subprocess.run(command, cwd=tests.parent).returncode


if __name__ == "__main__":
    sys.exit(main())
