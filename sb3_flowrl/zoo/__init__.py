"""
FlowRL in rl_zoo3.

The start-up hook (:mod:`sb3_flowrl.zoo.startup`) usually registers FlowRL by itself. Where it does not run (``python -S``,
``python -I``, ``pip install --target``, ``SB3_FLOWRL_NO_ZOO_HOOK=1``), call :func:`register`, or use
``python -m sb3_flowrl.zoo train|enjoy|...``, which calls it first.

The hook imports this package whenever Python starts, so the names below are imported on first use.
"""

TYPE_CHECKING = False  # as in `typing`, whose import takes longer than the hook may
if TYPE_CHECKING:
    from sb3_flowrl.zoo.registration import hyperparams_file, register

__all__ = ["hyperparams_file", "register"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'sb3_flowrl.zoo' has no attribute {name!r}")
    from sb3_flowrl.zoo import registration

    return getattr(registration, name)
