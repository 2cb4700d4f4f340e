"""The command ``sb3-flowrl`` as a module. ``test_zoo_install`` tests the script in fresh environments."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from sb3_flowrl import FlowRL
from sb3_flowrl.zoo.command import COMMANDS, main

#: An argument of each command.
OPTIONS = {"train": "--algo", "enjoy": "--load-best", "tune": "--workers", "export": "model", "play": "--video"}


def sb3_flowrl(*arguments: str, cwd: Path) -> str:
    command = [sys.executable, "-m", "sb3_flowrl.zoo.command", *arguments]
    result = subprocess.run(command, cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert result.returncode == 0, result.stdout
    return result.stdout


@pytest.mark.slow
def test_train_and_enjoy_need_no_algo(tmp_path):
    pytest.importorskip("rl_zoo3")
    options = ["-n", "120", "--eval-freq", "-1", "--num-threads", "1", "-params", "learning_starts:100"]
    sb3_flowrl("train", "--env", "Pendulum-v1", *options, cwd=tmp_path)
    assert FlowRL.load(tmp_path / "logs" / "flowrl" / "Pendulum-v1_1" / "Pendulum-v1.zip")._n_updates == 20
    output = sb3_flowrl("enjoy", "--env", "Pendulum-v1", "-f", "logs", "--no-render", "-n", "200", cwd=tmp_path)
    assert "Mean reward: -" in output


@pytest.mark.parametrize("command", OPTIONS)
def test_each_command_explains_its_own_arguments(command, monkeypatch, capsys):
    pytest.importorskip(COMMANDS[command].package)
    monkeypatch.setattr(sys, "argv", ["sb3-flowrl", command, "--help"])
    with pytest.raises(SystemExit, match="0"):
        main()
    assert OPTIONS[command] in capsys.readouterr().out


@pytest.mark.parametrize("command, extra", [("train", "zoo"), ("tune", "zoo"), ("export", "onnx"), ("play", "safe")])
def test_a_missing_package_is_named_with_its_extra(command, extra, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["sb3-flowrl", command, "--env", "Pendulum-v1"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=rf"^sb3-flowrl {command} needs .* pip install 'sb3-flowrl\[{extra}\]'$"):
        main()


def test_an_unknown_command_is_refused_with_the_commands_that_there_are(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sb3-flowrl", "fly"])
    with pytest.raises(SystemExit, match="2"):
        main()
    message = capsys.readouterr().err
    assert "fly" in message and "train" in message and "export" in message
