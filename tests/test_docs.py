"""The pages in docs/ do what they say."""

import pathlib
import re

import keras
import pytest

DOCS = pathlib.Path(__file__).parents[1] / "docs"


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A folder of its own, for the files that a page writes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    return tmp_path


def test_your_own_models(elsewhere, capsys):
    text = (DOCS / "your_own_models.md").read_text(encoding="utf-8")
    page = {}
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        exec(compile(block, "your_own_models.md", "exec"), page)
    assert [student for student, _ in page["pairs"]] == ["stage1", "stage2", "stage3"]
    assert page["pairs"][-1][1] == "out_relu"
    assert any("near chance" in warning for warning in page["report"].warnings)
    assert set(page["report"].losses) == {"student_loss", "kd_loss", "at_loss"}
    assert str(page["report"]) in capsys.readouterr().out
    saved = keras.models.load_model(elsewhere / "student.keras")
    assert saved.input_shape == (None, 32, 32, 1)
    assert saved.count_params() == page["student"].count_params()
