"""
Diagnostics that show why a run learns or stalls.

They consist of a callback, the quantities that it logs, and a trial update before the first step.
"""

from sb3_flowrl.diagnostics.callback import DiagnosticsCallback

__all__ = ["DiagnosticsCallback"]
