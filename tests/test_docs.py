"""The pages in docs/ do what they say."""

import inspect
import pathlib
import re

import keras
import pytest

import tfkd

DOCS = pathlib.Path(__file__).parents[1] / "docs"


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A folder of its own, for the files that a page writes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    return tmp_path


def run_page(name):
    """Executes all Python of a page, and returns its variables."""
    page = {}
    text = (DOCS / name).read_text(encoding="utf-8")
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        exec(compile(block, name, "exec"), page)
    return page


def test_sakd(elsewhere, capsys):
    page = run_page("sakd.md")
    assert [spot for spot, _ in page["distiller"].spots][-2:] == ["pooled", "logits"]
    assert "logits [" in capsys.readouterr().out
    saved = keras.models.load_model(elsewhere / "student.keras")
    assert saved.count_params() == page["student"].count_params()


def test_your_own_models(elsewhere, capsys):
    page = run_page("your_own_models.md")
    assert [student for student, _ in page["pairs"]] == ["stage1", "stage2", "stage3"]
    assert page["pairs"][-1][1] == "out_relu"
    assert any("near chance" in warning for warning in page["report"].warnings)
    assert set(page["report"].losses) == {"student_loss", "kd_loss", "at_loss"}
    assert str(page["report"]) in capsys.readouterr().out
    saved = keras.models.load_model(elsewhere / "student.keras")
    assert saved.input_shape == (None, 32, 32, 1)
    assert saved.count_params() == page["student"].count_params()


def test_ackd(elsewhere):
    page = run_page("ackd.md")
    assert {"val_accuracy", "val_fused_accuracy"} <= page["history"].history.keys()
    sizes = [
        keras.models.load_model(elsewhere / f"{name}.keras").count_params()
        for name in ("student", "fused")
    ]
    assert sizes[0] == page["student"].count_params() < sizes[1]


def test_iakd(elsewhere):
    page = run_page("iakd.md")
    assert page["history"]["keep_probability"] == pytest.approx([0.5, 0.75])
    assert {"swapped_share", "swapped_stage1", "swapped_stage3"} <= set(page["history"])
    assert len(page["by_hand"].parts.blocks) == 2
    saved = keras.models.load_model(elsewhere / "student.keras")
    assert saved.count_params() == page["student"].count_params()
    # The page tells every option and its default.
    text = (DOCS / "iakd.md").read_text(encoding="utf-8")
    for name, parameter in list(inspect.signature(tfkd.IAKD).parameters.items())[2:-2]:
        default = str(parameter.default).replace("'", '"')
        shown = f'"{default}"' if isinstance(parameter.default, str) else default
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}` |"))
        assert row.split("|")[2].strip().strip("`") == shown, name
