"""
What tells why a run learns or stalls: a callback that logs it, the measures that it logs, and a trial update before any step.
"""

from sb3_flowrl.diagnostics.callback import DiagnosticsCallback

__all__ = ["DiagnosticsCallback"]
