"""The commands in README and docs give only options that their programs have. Most take too long to be run in a test."""

import re
import shlex
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from sb3_flowrl.zoo.command import COMMANDS
from tests import paper_tasks

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
#: What a program is run with in a shell: conditions, variables, `for`, and commands in one line.
SEPARATORS = {"&&", ";", "do", "|"}


def documented_commands() -> Iterator[list[str]]:
    """Find the commands in code blocks, as lists of words."""
    for page in PAGES:
        for block in re.findall(r"^```bash\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                command: list[str] = []
                for word in [*shlex.split(line, comments=True), ";"]:
                    if word in SEPARATORS:
                        yield command
                        command = []
                    elif command or "=" not in word:  # else a variable of the environment
                        command.append(word)


def documented_options() -> dict[tuple[str, ...], set[str]]:
    """Collect the options that README and docs give to Python programs, for each program."""
    options: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for command in documented_commands():
        if command[:2] == ["python", "-m"] and command[2] != "pytest":
            program, rest = tuple(command[1:3]), command[3:]
        elif command[:1] == ["python"] and command[1].endswith(".py"):
            program, rest = (command[1],), command[2:]
        elif command[:1] == ["sb3-flowrl"]:
            program, rest = ("-m", "sb3_flowrl.zoo.command", command[1]), command[2:]
        else:
            continue
        options[program] |= {word for word in rest if re.match(r"--?[a-z]", word)}
    return options


OPTIONS = documented_options()


def test_the_commands_are_found():
    assert {("-m", "rl_zoo3.train"), ("benchmarks/bench_update.py",), ("examples/train_mujoco.py",)} <= OPTIONS.keys()
    assert {("-m", "sb3_flowrl.zoo.command", command) for command in ("play", "tune", "export")} <= OPTIONS.keys()
    assert {"--algo", "--env", "-params", "-optimize", "--n-jobs", "--storage"} <= OPTIONS["-m", "rl_zoo3.train"]


def options_in_help(program: tuple[str, ...]) -> set[str]:
    result = subprocess.run([sys.executable, *program, "--help"], cwd=ROOT, text=True, capture_output=True)
    assert result.returncode == 0, result.stderr
    return set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", result.stdout))


@pytest.mark.slow
@pytest.mark.parametrize("program", sorted(OPTIONS), ids=lambda program: " ".join(program).removeprefix("-m "))
def test_a_program_has_the_options_that_its_documented_commands_give(program):
    """Argparse would also take an abbreviation."""
    if program[-1] in COMMANDS:
        pytest.importorskip(COMMANDS[program[-1]].package)
    elif "rl_zoo3" in program[-1]:
        pytest.importorskip("rl_zoo3")
    if program[0].startswith("benchmarks/") and not paper_tasks.installed("mujoco"):
        pytest.skip("needs MuJoCo")
    known = options_in_help(program)
    if program[-1] == "tune":  # gives what it doesn't know itself to rl_zoo3
        known |= options_in_help(("-m", "rl_zoo3.train"))
    assert OPTIONS[program] <= known
