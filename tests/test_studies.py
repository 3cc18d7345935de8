"""Studies: results as data, and the tables of the pages made of them."""

import pathlib
import types

import pytest

from tfkd.commands import studies as command
from tfkd.errors import UsageError
from tfkd.runs import measurements, studies

ROOT = pathlib.Path(__file__).parents[1]
STUDIES = sorted((ROOT / "docs" / "results").glob("*.json"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]


def run(method, seed, accuracy, student="resnet8"):
    return {
        "student": student,
        "method": method,
        "seed": seed,
        "test_accuracy": accuracy,
        "epochs": 30,
        "commit": "abc",
    }


@pytest.fixture
def study():
    alone, kd = (0.30, 0.32, 0.34), (0.40, 0.41, 0.45)
    runs = [run("alone", seed, accuracy) for seed, accuracy in enumerate(alone)]
    runs += [run("kd", seed, accuracy) for seed, accuracy in enumerate(kd)]
    runs += [run("at", 1, 0.335), run("kd", 0, 0.5, "wrn_16_1")]
    return {
        "name": "small",
        "title": "Small",
        "baselines": ["alone", "kd"],
        "teachers": [run("alone", 7, 0.6, "resnet20")],
        "runs": runs,
    }


def test_the_table_has_means_deviations_and_differences_paired_by_seed(study):
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in studies.table(study, "resnet8").splitlines()
    ]
    # Differences 10, 9 and 11: their standard error is 1 / √3.
    assert rows[2:] == [
        ["`kd`", "42.00 ± 2.65", "40.00, 41.00, 45.00", "+10.00 ± 0.58", ""],
        ["`at`", "33.50", "33.50", "+1.50", "-7.50"],
        ["`alone`", "32.00 ± 2.00", "30.00, 32.00, 34.00", "", "-10.00 ± 0.58"],
    ]
    assert rows[0][3:] == ["minus `alone`", "minus `kd`"]
    # Another student has a table of its own, and here no baseline.
    assert studies.students(study) == ["resnet8", "wrn_16_1"]
    assert "50.00" in studies.table(study, "wrn_16_1")
    assert "resnet20 60.00 % (30 epochs, seed 7)" in studies.render(study)
    assert studies.paired({0: 0.5}, {1: 0.4}) == (None, None)


def test_pages_get_the_tables_between_their_marks(study, tmp_path):
    page, other = tmp_path / "page.md", tmp_path / "other.md"
    marked = "before\n<!-- study small -->\nold\n<!-- end of study small -->\nafter\n"
    page.write_text(marked)
    other.write_text(marked.replace("small", "large"))
    assert studies.write_pages([page, other], study) == [page]
    text = page.read_text()
    assert text.startswith("before\n<!-- study small -->\nTeacher: resnet20")
    assert text.endswith("<!-- end of study small -->\nafter\n") and "old" not in text
    assert "old" in other.read_text()
    assert studies.write_pages([page], study) == []


def test_a_study_is_read_as_it_was_written_one_run_per_line(study, tmp_path):
    path = tmp_path / "small.json"
    studies.write(path, study)
    assert studies.read(path) == study
    assert len(path.read_text().splitlines()) == len(study["runs"]) + 13
    studies.write(path, {**study, "runs": [], "teachers": []})
    assert studies.render(studies.read(path)) == "No run yet.\n"


def test_what_a_benchmark_measured_is_read_and_shown_like_a_study(tmp_path):
    path, page = tmp_path / "steps.json", tmp_path / "page.md"
    columns = {"step": "", "ms": ".1f", "MiB": ".0f"}
    measurements.write(path, "Two steps", columns, [["kd", 2.04, None], ["at", 30, 12.6]])
    steps = studies.read(path)
    assert (steps["name"], studies.students(steps)) == ("steps", [])
    assert {"command", "commit", "machine"} < steps.keys() and "keras" in steps["versions"]
    page.write_text("<!-- study steps -->\n<!-- end of study steps -->\n")
    assert studies.write_pages([page], steps) == [page]
    mark, head, blank, *table, end = page.read_text().splitlines()
    assert head.startswith("Two steps (`python ") and blank == ""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert rows[2:] == [["`kd`", "2.0", ""], ["`at`", "30.0", "13"]]
    with pytest.raises(UsageError, match="steps is no study but a benchmark"):
        studies.add(steps, tmp_path, "abc")


@pytest.mark.parametrize("text", [None, "{", "{}", "[]", '{"name": 1, "title": 2, "rows": []}'])
def test_what_is_no_study_is_told_in_a_line(tmp_path, text):
    path = tmp_path / "study.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError, match=r"study\.json"):
        studies.read(path)
    with pytest.raises(UsageError, match="no finished run"):
        studies.add({"runs": [], "teachers": []}, tmp_path, "abc")


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_the_pages_have_the_tables_of_the_data(path):
    study = studies.read(path)
    assert study["name"] == path.stem
    marked = [page for page in PAGES if f"<!-- study {path.stem} -->" in page.read_text("utf-8")]
    assert marked
    for page in marked:
        text = page.read_text(encoding="utf-8")
        assert studies.mark(text, study) == text, f"{page}: tfkd studies writes it again"


def test_a_study_is_drawn(study, tmp_path):
    path = tmp_path / "study.png"
    studies.picture(path, study, "resnet8")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_the_command_writes_pictures_and_pages_and_names_what_is_wrong(
    study, tmp_path, monkeypatch, capsys
):
    def run(*rest, workdir=None):
        values = {"workdir": workdir, "pages": [str(tmp_path)], "commit": "abc", "speeds": True}
        monkeypatch.setattr(command.flags, "FLAGS", types.SimpleNamespace(**values))
        command.main(list(map(str, rest)))

    path, page = tmp_path / "small.json", tmp_path / "page.md"
    studies.write(path, study)
    page.write_text("<!-- study small -->\n<!-- end of study small -->\n")
    run(path)
    assert studies.mark(page.read_text(), study) == page.read_text() != ""
    assert (tmp_path / "small_resnet8.png").exists()
    assert studies.render(study) in capsys.readouterr().out
    with pytest.raises(UsageError, match="Name a study"):
        run()
    with pytest.raises(UsageError, match="one study"):
        run(path, path, workdir=tmp_path)
    with pytest.raises(UsageError, match="no finished run"):
        run(path, workdir=tmp_path)
