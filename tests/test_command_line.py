"""What all commands do before their own work."""

import pytest
import tensorflow as tf
from commands import SMALL, call

from tfkd import runtime


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


def test_the_devices_come_first(capsys):
    more = ["--strategy=mirrored", "--replicas=2", "--precision=mixed_bfloat16"]
    call(lambda config: print("the run"), *SMALL, *more, needs_workdir=False)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("devices: ") and first.endswith(", 2 replicas, mixed_bfloat16")
    assert second == "the run"


def test_only_the_chief_tells_the_devices(capsys, monkeypatch):
    monkeypatch.setattr(runtime, "is_chief", lambda: False)
    call(lambda config: None, *SMALL, needs_workdir=False)
    assert "devices" not in capsys.readouterr().out
