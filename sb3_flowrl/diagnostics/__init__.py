"""
What tells why a run learns or stalls: a callback that logs it, and the measures that it logs.
"""

from sb3_flowrl.diagnostics.callback import DiagnosticsCallback

__all__ = ["DiagnosticsCallback"]
