"""What all commands do before their own work."""

import json

import pytest
import tensorflow as tf
from commands import SMALL, call, refused

from tfkd import config, data, runtime
from tfkd.runs import guard


@pytest.mark.parametrize(
    "given, expected",
    [([], 1), (["--deterministic=True"], 1), (["--nodeterministic"], 0)],
)
def test_determinism_can_be_switched_off(given, expected, monkeypatch):
    enabled = []
    monkeypatch.setattr(
        tf.config.experimental, "enable_op_determinism", lambda: enabled.append(True)
    )
    call(lambda config: runtime.set_seed(config.seed), *SMALL, *given, needs_workdir=False)
    assert len(enabled) == expected


def test_none_takes_a_value_of_the_config_away():
    found = []
    call(
        found.append,
        *SMALL,
        "--config.data.train_examples=None",
        "--config.teacher.scale=None",
        needs_workdir=False,
    )
    assert found[0].data.train_examples is None and found[0].teacher.scale is None
    assert found[0].data.batch_size == 32


def test_the_devices_come_first(capsys):
    more = ["--strategy=mirrored", "--replicas=2", "--precision=mixed_bfloat16"]
    call(lambda config: print("the run"), *SMALL, *more, needs_workdir=False)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("devices: ") and first.endswith(", 2 replicas, mixed_bfloat16")
    assert second == "the run"


def test_auto_tells_what_it_has_picked(capsys, monkeypatch):
    monkeypatch.setattr(runtime.devices, "_computes_in_bfloat16", lambda: True)
    call(lambda config: None, *SMALL, "--precision=auto", needs_workdir=False)
    assert "precision: mixed_bfloat16 suits them" in capsys.readouterr().out


def test_fused_batch_normalization_can_be_switched_off(monkeypatch):
    set_to = []
    monkeypatch.setattr(runtime, "set_fused_batch_normalization", set_to.append)
    for more in ([], ["--nofused_batch_norm"]):
        call(lambda config: None, *SMALL, *more, needs_workdir=False)
    assert set_to == [True, False]


def test_only_the_chief_tells_the_devices(capsys, monkeypatch):
    monkeypatch.setattr(runtime, "is_chief", lambda: False)
    call(lambda config: None, *SMALL, needs_workdir=False)
    assert "devices" not in capsys.readouterr().out


def test_data_sets_are_kept_where_the_flag_says(tmp_path):
    call(lambda chosen: data.load("digits"), *SMALL, f"--data_dir={tmp_path}", needs_workdir=False)
    assert (tmp_path / "digits").is_dir()


@pytest.fixture
def stored(tmp_path):
    """The path of a config.json."""
    path = tmp_path / "config.json"
    made = config.default_config("kd", "resnet20", "resnet8")
    path.write_text(guard.as_json(made), encoding="utf-8")
    return path


def test_a_config_may_be_json(stored):
    taken = []
    more = ["--config.data.train_examples=64", "--config.schedule.milestones=(0.5,)"]
    call(taken.append, f"--config={stored}", *more, needs_workdir=False)
    wanted = json.loads(stored.read_text(encoding="utf-8"))
    wanted["data"]["train_examples"], wanted["schedule"]["milestones"] = 64, [0.5]
    assert json.loads(guard.as_json(taken[0])) == wanted
    assert taken[0].is_locked


@pytest.mark.parametrize(
    "suffix, more, message",
    [
        (":method=at", [], "takes no arguments after a colon, such as method=at: values"),
        (".json", [], "config.json.json cannot be read: No such file"),
        ("", ["--config.epoch=1"], "has no such value"),
    ],
)
def test_mistakes_with_json(suffix, more, message, stored, capsys):
    given = [f"--config={stored}{suffix}", *more]
    assert message in refused(capsys, lambda config: None, *given, needs_workdir=False)
