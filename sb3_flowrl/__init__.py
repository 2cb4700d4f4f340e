"""
FlowRL (Lv et al., NeurIPS 2025, arXiv 2506.12811) for Stable-Baselines3.

The start-up hook for rl_zoo3 imports this package whenever Python starts. The names below are therefore imported on first
use, so that the hook reads no more than two small files.
"""

TYPE_CHECKING = False  # as in `typing`; importing that module would double Python's start-up time
if TYPE_CHECKING:
    from sb3_flowrl.buffers import NStepRecencyReplayBuffer, RecencyReplayBuffer
    from sb3_flowrl.checkpoint import ResumableCheckpointCallback
    from sb3_flowrl.diagnostics import DiagnosticsCallback
    from sb3_flowrl.flowrl import FlowRL
    from sb3_flowrl.policies import CnnPolicy, FlowActorCriticPolicy, MlpPolicy, MultiInputPolicy
    from sb3_flowrl.presets import paper_arguments, reference_arguments, v0_1_arguments

__version__: str

_MODULES = {
    "DiagnosticsCallback": "diagnostics",
    "FlowRL": "flowrl",
    "NStepRecencyReplayBuffer": "buffers",
    "RecencyReplayBuffer": "buffers",
    "ResumableCheckpointCallback": "checkpoint",
    "FlowActorCriticPolicy": "policies",
    "CnnPolicy": "policies",
    "MlpPolicy": "policies",
    "MultiInputPolicy": "policies",
    "paper_arguments": "presets",
    "reference_arguments": "presets",
    "v0_1_arguments": "presets",
    "__version__": "version",
}

__all__ = [
    "CnnPolicy",
    "DiagnosticsCallback",
    "FlowActorCriticPolicy",
    "FlowRL",
    "MlpPolicy",
    "MultiInputPolicy",
    "NStepRecencyReplayBuffer",
    "RecencyReplayBuffer",
    "ResumableCheckpointCallback",
    "paper_arguments",
    "reference_arguments",
    "v0_1_arguments",
]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'sb3_flowrl' has no attribute {name!r}")
    import importlib

    value = globals()[name] = getattr(importlib.import_module(f"sb3_flowrl.{_MODULES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
