"""`python -m tfkd.check` tells what would spoil a run."""

from commands import SMALL, call, refused

from tfkd import check


def test_it_prints_the_check_of_the_run_and_writes_nothing(tmp_path, monkeypatch, capsys):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    call(check.check, *SMALL, f"--data_dir={tmp_path / 'tfds'}", needs_workdir=False)
    printed = capsys.readouterr().out
    assert "teacher  resnet14" in printed and "kd_loss" in printed
    assert "near chance" in printed and "untrained here" in printed
    assert not list((tmp_path / "here").iterdir())


def test_a_mistake_is_one_line(capsys):
    assert "no such value" in refused(
        capsys, check.check, *SMALL, "--config.nothing=1", needs_workdir=False
    )
