"""The command `tfkd` finds every command."""

import importlib
import subprocess
import sys

import pytest

import tfkd_cli


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "tfkd", *arguments], capture_output=True, text=True, check=False
    )


def test_every_command_is_a_module_that_tells_what_it_does():
    for name in tfkd_cli.COMMANDS:
        module = importlib.import_module(f"tfkd.{name}")
        assert f"python -m tfkd.{name}" in module.__doc__
        assert f"  {name}" in tfkd_cli.usage()


def test_a_command_runs_with_its_arguments_and_help():
    described = run("describe", "at")
    assert described.returncode == 0, described.stderr
    assert "AttentionTransfer" in described.stdout
    # Its own docstring and flags, not those of the tfkd_cli.
    shown = run("train", "--help").stdout
    assert "Trains a teacher and distils a student." in shown
    assert "--workdir" in shown and "--config" in shown and "--attention" not in shown


@pytest.mark.parametrize("arguments", [[], ["--help"], ["help"]])
def test_without_a_command_it_lists_them(arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tfkd", *arguments])
    tfkd_cli.main()
    assert capsys.readouterr().out == tfkd_cli.usage() + "\n"


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_help_and_version_do_not_wait_for_tensorflow(argument):
    code = (
        f"import sys, tfkd_cli; sys.argv = ['tfkd', {argument!r}]; tfkd_cli.main(); "
        "assert not {'tensorflow', 'keras', 'tfkd', 'numpy'} & set(sys.modules)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.startswith("tfkd")


@pytest.mark.parametrize(
    ("argument", "line"),
    [
        ("trian", "error: Unknown command 'trian': it must be one of train,"),
        ("--workdir=runs", "error: The command comes first: tfkd COMMAND --workdir=runs;"),
    ],
)
def test_mistakes_are_one_line(argument, line, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tfkd", argument])
    with pytest.raises(SystemExit, match="2"):
        tfkd_cli.main()
    printed = capsys.readouterr().err
    assert printed.startswith(line) and printed.count("\n") == 1
