"""
Run a command of rl_zoo3 with FlowRL registered.

    python -m sb3_flowrl.zoo <command> ...

does the same as ``python -m rl_zoo3.<command> ...``, and works even if the start-up hook does not run.
Commands: train, enjoy, record_video, plots.plot_train, push_to_hub, ...
"""

import runpy
import sys

from sb3_flowrl import zoo


def main() -> None:
    """
    Run the command.
    """
    if sys.argv[1:2] in (["-h"], ["--help"]):
        print(__doc__)
        return
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    command = sys.argv.pop(1)
    zoo.register()
    runpy.run_module(f"rl_zoo3.{command}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
