"""What the command line makes of errors that are no defects of ours."""

import pytest
import tensorflow as tf

import tfkd
from tfkd import errors, methods

FULL = "No space left on device"


@pytest.mark.parametrize(
    "error, name",
    [
        (OSError(28, FULL), "A file"),
        (OSError(28, FULL, "runs/a/metrics.csv"), "runs/a/metrics.csv"),
        (
            tf.errors.ResourceExhaustedError(
                None, None, f"{{{{node}}}} /runs/a/events.v2; {FULL}\n\tFailed to flush 1 events"
            ),
            "/runs/a/events.v2",
        ),
    ],
)
def test_a_full_disk_is_one_line(error, name, capsys):
    with pytest.raises(SystemExit) as stop, errors.exit_on_usage_error():
        raise error
    assert stop.value.code == errors.MISTAKE
    expected = f"error: {name} could not be written ({FULL}): make room; then the same command "
    assert capsys.readouterr().err == f"{expected}goes on.\n"


def test_what_a_graph_says_is_wrong_is_one_line(capsys):
    """As of a file that a pipeline comes upon in the middle of an epoch."""
    told = tf.constant("UsageError: Image it's \u00eatre[1].png cannot be decoded: mend it.")
    numbers = tf.data.Dataset.range(3)
    checked = numbers.map(lambda x: [tf.debugging.Assert(x < 2, [told]), x][1])
    with pytest.raises(SystemExit) as stop, errors.exit_on_usage_error():
        list(checked)
    assert stop.value.code == errors.MISTAKE
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: Image it's \u00eatre[1].png cannot be decoded: mend it."
    )


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: tfkd.losses.get("dkt"), "Unknown loss 'dkt': .*; did you mean 'dkd' or 'pkt'.$"),
        (lambda: tfkd.losses.get("RKD"), "; did you mean 'rkd'.$"),
        (lambda: tfkd.losses.get("hints"), "Unknown loss 'hints': [^;]*\\.$"),
        (lambda: methods.method_config("akd"), "Unknown method 'akd': .* did you mean 'ackd' or"),
        (lambda: methods.method_config("kd+att"), "Unknown method 'att': .*; did you mean 'at'.$"),
    ],
)
def test_a_name_with_a_slip_is_answered_with_those_that_are_near(make, message):
    with pytest.raises(errors.UsageError, match=message):
        make()


@pytest.mark.parametrize("error", [RuntimeError("a defect"), OSError("another"), KeyError("x")])
def test_defects_keep_their_traceback(error):
    with pytest.raises(type(error)), errors.exit_on_usage_error():
        raise error
