"""Workers on this machine, which here do not train."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from tfkd import local_workers
from tfkd.errors import UsageError

WHO = "import json, os, sys, time; c = json.loads(os.environ['TF_CONFIG']); i = c['task']['index']"


def run(script, workers=2):
    return local_workers.run([sys.executable, "-c", f"{WHO}\n{script}"], workers)


def test_each_worker_knows_the_others(tmp_path):
    script = f"open(f'{tmp_path}/{{i}}', 'w').write(json.dumps(c['cluster']))"
    assert run(script, workers=3) == 0
    clusters = {(tmp_path / str(position)).read_text() for position in range(3)}
    assert len(clusters) == 1
    (cluster,) = clusters
    assert len(set(eval(cluster)["worker"])) == 3


def test_the_chief_is_shown_and_the_others_only_where_they_fail(capfd):
    assert run("print('I am', i)") == 0
    assert capfd.readouterr().out == "I am 0\n"
    assert run("print('I am', i); sys.exit(3 * i)") == 3
    printed = capfd.readouterr()
    assert printed.out == "I am 0\n"
    assert "worker 1 failed" in printed.err and "I am 1" in printed.err


def test_the_exit_code_is_that_of_the_chief():
    assert run("sys.exit(2 - i)") == 2


@pytest.mark.parametrize("failing", [0, 1])
def test_all_end_when_one_fails(failing, monkeypatch, tmp_path):
    monkeypatch.setattr(local_workers, "_PATIENCE", 0.5)
    started = time.monotonic()
    script = f"open(f'{tmp_path}/{{i}}', 'w').write(str(os.getpid()))"
    code = run(f"{script}\nif i == {failing}: sys.exit(5)\ntime.sleep(60)")
    assert code == 5
    assert time.monotonic() - started < 20
    for position in range(2):
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / str(position)).read_text()), 0)


def test_workers_that_do_not_heed_an_interrupt_are_ended(monkeypatch):
    monkeypatch.setattr(local_workers, "_PATIENCE", 0.5)
    # Processes that share out tests ignore it, and so would those that they start.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Timer(1.5, os.kill, [os.getpid(), signal.SIGINT]).start()
        assert run("import signal; signal.signal(2, signal.SIG_IGN); time.sleep(60)") == 130
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_an_interrupted_run_interrupts_all(number):
    script = f"{WHO}\ntry: print('ready', flush=True); time.sleep(60)\nexcept KeyboardInterrupt: "
    command = [sys.executable, "-c", script + "print('stopped', i, flush=True); sys.exit(130)"]
    process = subprocess.Popen(
        [sys.executable, "-m", "tfkd.local_workers", "--workers=2", "--", *command],
        stdout=subprocess.PIPE,
        text=True,
        # Processes that share out tests ignore it, and so would those that they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    timer = threading.Timer(100.0, process.kill)
    timer.start()
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line == "ready\n":
            process.send_signal(number)
    timer.cancel()
    assert process.wait() == 130 and lines[-1] == "stopped 0\n"


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "The workers' command is missing"),
        (["--workers=2"], "The workers' command is missing"),
        (["--workers=0", "--", "python"], "workers=0"),
        (["--wrokers=2", "--", "python"], "Unknown command line flag 'wrokers'"),
        (["--", "no-such-command"], "no-such-command cannot be run: No such file"),
    ],
)
def test_a_mistake_is_one_line(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["local_workers", *arguments])
    before = signal.getsignal(signal.SIGTERM)
    local_workers.flags.FLAGS.unparse_flags()
    try:
        with pytest.raises(SystemExit) as stop:
            local_workers.main()
    finally:
        signal.signal(signal.SIGTERM, before)
        local_workers.flags.FLAGS.unparse_flags()
    assert stop.value.code == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert message in line


def test_a_command_that_cannot_be_run():
    with pytest.raises(UsageError, match="cannot be run"):
        local_workers.run(["/no/such/command"])
