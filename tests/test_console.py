"""What runs print."""

import json
import types

import pytest

from tfkd.runs import console

SUMMARY = {
    "config": {"select": "last"},
    "teacher": {"test_accuracy": 0.98},
    "student": {
        "last": {"epoch": 10, "test_accuracy": 0.954},
        "best": {"epoch": 8, "test_accuracy": 0.952},
    },
    "learners": {
        "fused": {
            "last": {"epoch": 10, "test_accuracy": 0.96},
            "best": {"epoch": 10, "test_accuracy": 0.96},
        }
    },
    "training_seconds": 754.2,
}


def test_the_result_of_a_run():
    assert console.result(json.loads(json.dumps(SUMMARY)), "runs/my run").splitlines() == [
        "teacher: test accuracy 98.00%",
        "student: test accuracy 95.40% (last epoch), 95.20% (epoch 8, best in validation)",
        "fused: test accuracy 96.00% (last epoch)",
        "trained in 13 min; in 'runs/my run':",
        "  student.keras, fused.keras, summary.json, metrics.csv, curves.png",
        "next:",
        "  tfkd report --workdir='runs/my run'",
        "  tfkd export --workdir='runs/my run' --format=tflite",
    ]
    best = {**SUMMARY, "config": {"select": "best"}, "teacher": {"test_accuracy": None}}
    lines = console.result(best, "run").splitlines()
    assert "saved: the epoch that is best in validation" in lines and "teacher" not in lines[0]


@pytest.mark.parametrize(
    "seconds, text",
    [(0.4, "0 s"), (59.4, "59 s"), (60, "1 min"), (3599, "1 h 0 min"), (12000, "3 h 20 min")],
)
def test_durations(seconds, text):
    assert console.duration(seconds) == text


def epoch_lines(monkeypatch, live, columns=80):
    clock = types.SimpleNamespace(now=0.0)
    monkeypatch.setattr(console.time, "perf_counter", lambda: clock.now)
    monkeypatch.setattr(console.sys.stdout, "isatty", lambda: live, raising=False)
    monkeypatch.setattr(
        console.shutil, "get_terminal_size", lambda: types.SimpleNamespace(columns=columns)
    )
    progress = types.SimpleNamespace(speeds=[1234.5])
    data = types.SimpleNamespace(steps_per_epoch=703, batch_size=64)
    lines = console.EpochLines(progress, data)
    lines.set_params({"epochs": 240})
    return lines, clock


LOGS = {"loss": 12.34567, "kd_loss": 1.0, "accuracy": 0.8125}


def train_epoch(lines, clock, capsys, epoch=99):
    """Returns what an epoch of 60 seconds prints."""
    lines.on_epoch_begin(epoch)
    for batch in range(703):
        clock.now += 60 / 703
        lines.on_train_batch_end(batch, LOGS)
    lines.on_epoch_end(epoch, {**LOGS, "val_accuracy": 0.7912, "val_loss": 1.0})
    return capsys.readouterr().out


def test_a_pipe_gets_a_plain_line_for_each_epoch(monkeypatch, capsys):
    printed = train_epoch(*epoch_lines(monkeypatch, live=False), capsys)
    # 80 columns have no room for the speed beside the time left.
    assert printed == (
        "epoch 100/240  loss 12.35  accuracy 81.2%  validation 79.1%  2 h 20 min left\n"
    )


@pytest.mark.parametrize("columns", [200, 80, 40])
def test_a_terminal_sees_one_line_that_changes(columns, monkeypatch, capsys):
    printed = train_epoch(*epoch_lines(monkeypatch, live=True, columns=columns), capsys)
    assert printed.count("\n") == 1 and printed.endswith("\n")
    first, *shown = printed.rstrip("\n").split("\r")
    assert first == "" and 100 < len(shown) <= 301
    # Each hides the one before, and none wraps.
    assert {len(line) for line in shown} == {min(80, columns) - 1}
    assert shown[0].startswith("epoch 100/240  step 3/703  loss 12.35")
    if columns == 80:
        assert "step 402/703  loss 12.35  accuracy 81.2%  2 h 20 min left" in printed
    last = train_epoch(*epoch_lines(monkeypatch, live=False, columns=columns), capsys)
    assert shown[-1].rstrip() == last.rstrip()
