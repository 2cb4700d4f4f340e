"""
``python -m sb3_flowrl.zoo <command> ...`` is ``python -m rl_zoo3.<command> ...`` with FlowRL registered.

For where the start-up hook does not run. Commands: train, enjoy, record_video, plots.plot_train, push_to_hub, ...
"""

import runpy
import sys

from sb3_flowrl import zoo


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        sys.exit(__doc__)
    command = sys.argv.pop(1)
    zoo.register()
    runpy.run_module(f"rl_zoo3.{command}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
