"""
The command ``sb3-flowrl``.

    sb3-flowrl train --env HalfCheetah-v5 --progress    train with rl_zoo3
    sb3-flowrl enjoy --env HalfCheetah-v5 -f logs       play what rl_zoo3 trained
    sb3-flowrl tune --env Pendulum-v1                   tune with rl_zoo3 and Optuna in several processes
    sb3-flowrl play HalfCheetah-v4                      watch a trained agent of ours
    sb3-flowrl export model.zip policy.onnx             write a saved model's policy as an ONNX file

``sb3-flowrl <command> --help`` lists the arguments of a command. ``train`` and ``enjoy`` take those of rl_zoo3.
"""

import argparse
import importlib.util
import runpy
import sys
from typing import NamedTuple


class Command(NamedTuple):
    """
    What runs a command: ``python -m module arguments...``.

    :param module: the module
    :param arguments: its first arguments, before the user's
    :param package: the package that it needs
    :param extra: the extra that brings the package
    """

    module: str
    arguments: list[str]
    package: str
    extra: str


COMMANDS = {
    "train": Command("sb3_flowrl.zoo", ["train", "--algo", "flowrl"], "rl_zoo3", "zoo"),
    "enjoy": Command("sb3_flowrl.zoo", ["enjoy", "--algo", "flowrl"], "rl_zoo3", "zoo"),
    "tune": Command("sb3_flowrl.zoo.tune", [], "rl_zoo3", "zoo"),
    "play": Command("sb3_flowrl.play", [], "safetensors", "safe"),
    "export": Command("sb3_flowrl.export", [], "onnxscript", "onnx"),
}


def main() -> None:
    """
    Run the command.
    """
    parser = argparse.ArgumentParser("sb3-flowrl", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="arguments of the command")
    args = parser.parse_args()
    command = COMMANDS[args.command]
    if importlib.util.find_spec(command.package) is None:
        sys.exit(
            f"sb3-flowrl {args.command} needs {command.package}. Install it with: pip install 'sb3-flowrl[{command.extra}]'"
        )
    sys.argv[1:] = [*command.arguments, *args.arguments]
    runpy.run_module(command.module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
