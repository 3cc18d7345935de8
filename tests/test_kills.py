"""Runs that are killed again and again end as if nobody had touched them."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


#: Every kind of state. The benchmark's others, alone and kd+at, have none that kd has not.
METHODS = "kd,ft,crd,ackd,sakd+at,iakd,mutual,acn:warm_up=2:adversarial_every=2"


@pytest.mark.slow
def test_twenty_kills_change_no_bit(tmp_path):
    flags = ["--kills=20", f"--methods={METHODS}", f"--workdir={tmp_path}"]
    command = [sys.executable, "benchmarks/kills.py", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "20 of 20 equal" in done.stdout
