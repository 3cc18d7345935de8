"""What compiled libraries write past Python is dropped by line."""

import os

from tfkd.stderr import without_lines


def test_lines_with_a_beginning_are_dropped_and_others_come_later(capfd):
    with without_lines(b"I0000 ", b"WARNING: "):
        os.write(2, b"I0000 chatter\nerror: I0000\nWARNING: chatter\nmore\n")
        assert not capfd.readouterr().err
    os.write(2, b"I0000 after\n")
    assert capfd.readouterr().err == "error: I0000\nmore\nI0000 after\n"
    with without_lines(b""):
        os.write(2, b"all\n")
    assert not capfd.readouterr().err
