"""Register the algorithm, its hyperparameters and its search space with rl_zoo3."""

import functools
import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

ALGO = "flowrl"


def hyperparams_file() -> Path:
    """
    Return the path of FlowRL's hyperparameters.

    :return: the packaged ``flowrl.yml``, or in a checkout the one in its ``hyperparams`` folder
    """
    package = Path(__file__).parent.parent
    packaged = package / "hyperparams" / f"{ALGO}.yml"
    return packaged if packaged.exists() else package.parent / "hyperparams" / f"{ALGO}.yml"


def complete_utils(module: ModuleType) -> None:
    """Add the algorithm to ``rl_zoo3.utils``."""
    from sb3_flowrl.flowrl import FlowRL

    module.ALGOS.setdefault(ALGO, FlowRL)


def complete_hyperparams_opt(module: ModuleType) -> None:
    """Add the search space to ``rl_zoo3.hyperparams_opt``."""
    from sb3_flowrl.zoo.search_space import convert_flowrl_params, sample_flowrl_params

    module.HYPERPARAMS_SAMPLER.setdefault(ALGO, sample_flowrl_params)
    module.HYPERPARAMS_CONVERTER.setdefault(ALGO, convert_flowrl_params)


def complete_exp_manager(module: ModuleType) -> None:
    """Make ``rl_zoo3.exp_manager`` read our hyperparameters, because rl_zoo3 has no file for FlowRL."""
    manager: Any = module.ExperimentManager
    original = manager.__init__
    if getattr(original, "completed_by_sb3_flowrl", False):
        return
    default = Path(str(module.__file__)).parent / "hyperparams" / f"{ALGO}.yml"

    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if getattr(self, "algo", None) != ALGO:
            return
        if not hasattr(self, "config"):
            _report_unregistered(module, "ExperimentManager has no attribute 'config'")
        # a file that the user named stays, so that rl_zoo3 reports it if it is missing
        elif Path(self.config) == default and not default.exists():
            self.config = str(hyperparams_file())

    init.completed_by_sb3_flowrl = True  # type: ignore[attr-defined]
    manager.__init__ = init


def complete_push_to_hub(module: ModuleType) -> None:
    """
    Restore a function of ``huggingface_sb3.push_to_hub`` that rl_zoo3 imports and version 3.2 renamed.

    In rl_zoo3's command ``push_to_hub``, also complete what it uploads (:mod:`sb3_flowrl.zoo.hub`).
    """
    if not hasattr(module, "generate_metadata"):
        generate = module._generate_metadata
        module.generate_metadata = lambda *args: generate(*args).to_dict()  # type: ignore[attr-defined]
    if any(argument.endswith("push_to_hub") for argument in sys.orig_argv):
        import huggingface_hub

        from sb3_flowrl.zoo.hub import HubApi

        huggingface_hub.HfApi = HubApi  # type: ignore[misc]


def complete_load_from_hub(module: ModuleType) -> None:
    """
    Let rl_zoo3's ``load_from_hub`` load models that have no normalization file, as FlowRL's.

    It expects requests' error for a missing file, and huggingface_hub raises its own since version 1.
    """
    from huggingface_hub.errors import EntryNotFoundError
    from requests.exceptions import HTTPError

    class MissingFileError(HTTPError, EntryNotFoundError):
        """A file that is not in the repository."""

    original = module.load_from_hub
    if getattr(original, "completed_by_sb3_flowrl", False):
        return

    @functools.wraps(original)
    def load_from_hub(repo_id: str, filename: str) -> Any:
        try:
            return original(repo_id, filename)
        except EntryNotFoundError as error:
            raise MissingFileError(f"{repo_id} has no file {filename}.") from error

    load_from_hub.completed_by_sb3_flowrl = True  # type: ignore[attr-defined]
    module.load_from_hub = load_from_hub  # type: ignore[attr-defined]


_COMPLETIONS = {
    "rl_zoo3.utils": complete_utils,
    "rl_zoo3.hyperparams_opt": complete_hyperparams_opt,
    "rl_zoo3.exp_manager": complete_exp_manager,
    "huggingface_sb3.push_to_hub": complete_push_to_hub,
    "huggingface_sb3.load_from_hub": complete_load_from_hub,
}


def complete(module: ModuleType, quiet: bool = False) -> None:
    """
    Complete one of the modules that the start-up hook waits for.

    If that fails, the module works without FlowRL.

    :param module: the module, fully loaded
    :param quiet: whether to hide a failure; otherwise one line on stderr reports it
    """
    try:
        _COMPLETIONS[module.__name__](module)
    except Exception as error:
        if not quiet:
            _report_unregistered(module, f"{type(error).__name__}: {error}")


def _report_unregistered(module: ModuleType, reason: str) -> None:
    print(
        f"sb3-flowrl: could not register 'flowrl' in {module.__name__} ({reason}). It is made for rl_zoo3 2.9. "
        "SB3_FLOWRL_NO_ZOO_HOOK=1 turns the registration off.",
        file=sys.stderr,
    )


def register() -> None:
    """
    Register FlowRL with rl_zoo3.

    This can be called any number of times, before or after rl_zoo3 is imported.

    :raises ImportError: if rl_zoo3 is not installed
    """
    try:
        importlib.import_module("rl_zoo3.exp_manager")
    except ModuleNotFoundError as error:
        raise ImportError(f"rl_zoo3 can't be imported ({error}). Install it with: pip install 'sb3-flowrl[zoo]'") from error
    for name in _COMPLETIONS:
        if name in sys.modules:
            complete(sys.modules[name])
