"""Reports: the page holds what the runs left, and nothing that is elsewhere."""

import base64
import csv
import html.parser
import importlib.util
import io
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
from absl import flags
from PIL import Image

import tfkd
from tfkd import command_line, compare, config, errors
from tfkd.errors import UsageError
from tfkd.report import __main__ as command
from tfkd.report import confusion, curves, page, report, runs, table
from tfkd.runs import execute, measure, results

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


class Page(html.parser.HTMLParser):
    """What a page consists of."""

    VOID = {"meta", "link", "img", "br"}

    def __init__(self, path):
        super().__init__()
        self.ids, self.images, self.links, self.tags = [], [], [], []
        self.tables, self.text, self.open, self.scopes = [], "", [], set()
        self.feed(pathlib.Path(path).read_text(encoding="utf-8"))
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        if tag not in self.VOID:
            self.open.append(tag)
        self.ids += [attributes["id"]] if "id" in attributes else []
        for name in ("href", "src", "xlink:href"):
            self.links += [attributes[name]] if name in attributes else []
        if tag == "img":
            self.images.append(attributes)
        elif tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag == "th":
            self.scopes.add(attributes.get("scope"))

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data

    def curves(self):
        """Returns the descriptions of the curves."""
        return [one["alt"] for one in self.images if "After the last one: " in one["alt"]]

    def table(self, *heading):
        """Returns the rows of the only table that begins with these columns, as dictionaries."""
        tables = [
            [[" ".join(cell.split()) for cell in row] for row in table] for table in self.tables
        ]
        (found,) = [table for table in tables if tuple(table[0][: len(heading)]) == heading]
        return [dict(zip(found[0], row, strict=True)) for row in found[1:]]


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    """A comparison, in a directory whose name must be escaped."""
    folder = tmp_path_factory.mktemp("runs")
    # Named so afterwards: not every library that writes there takes such a name.
    made = folder / "made"
    command = "python -m tfkd.compare '--config=<script>alert(1)</script>.py' --seeds=1"
    # The student alone is the teacher as well, to train two models rather than three.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(folder / "tfds"))
        for method, teacher in (("alone", "resnet8"), ("kd", f"{made}/teacher/student.keras")):
            chosen, _ = config.from_arguments(
                f"method={method}", teacher=teacher, student="resnet8"
            )
            chosen.data.train_examples, chosen.data.batch_size, chosen.epochs = 64, 32, 1
            execute.run(chosen, made / f"{method}-seed0", command)
            if method == "alone":
                shutil.copytree(made / "alone-seed0", made / "teacher")
    return made.rename(folder / "<b>&amp;'\"")


@pytest.fixture(scope="module")
def data_dir(comparison):
    return comparison.parent / "tfds"


@pytest.fixture(scope="module")
def made(comparison, data_dir):
    """The path of its page."""
    return report([comparison], data_dir=data_dir)


@pytest.fixture
def copied(comparison, tmp_path):
    """The comparison, to be changed."""
    ignored = shutil.ignore_patterns("report.html")
    return pathlib.Path(shutil.copytree(comparison, tmp_path / "copy", ignore=ignored))


def summary(workdir):
    return json.loads((workdir / "summary.json").read_text(encoding="utf-8"))


def change(path, **values):
    """Changes values of a JSON file; `student__test_accuracy` is one within another."""
    tree = json.loads(path.read_text(encoding="utf-8"))
    for name, value in values.items():
        *parents, last = name.split("__")
        part = tree
        for parent in parents:
            part = part[parent]
        part[last] = value
    path.write_text(json.dumps(tree), encoding="utf-8")


def another_seed(workdir, seed=1, **values):
    """Makes a run with another seed of a run, and changes values of its summary."""
    other = workdir.with_name(workdir.name.replace("seed0", f"seed{seed}"))
    shutil.copytree(workdir, other)
    change(other / "config.json", seed=seed)
    change(other / "summary.json", config__seed=seed, **values)
    return other


def test_the_page_stands_alone(comparison, made):
    assert made == comparison / "report.html"
    page = Page(made)
    assert page.images and all(one["alt"] for one in page.images)
    for one in page.images:
        kind, _, data = one["src"].partition(",")
        assert kind == "data:image/png;base64"
        assert Image.open(io.BytesIO(base64.b64decode(data))).width >= 8
    assert len(page.ids) == len(set(page.ids))
    # Links lead to places on the page, or hold their data.
    assert {link.split(",")[0] for link in page.links if not link.startswith("#")} <= {
        "data:",
        "data:image/png;base64",
    }
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "iframe", "b", "object"}
    assert not re.search(r"@import|url\((?!#)", made.read_text(encoding="utf-8"))
    assert page.scopes == {"col", "row"}
    assert len(page.curves()) >= 4
    # Names are shown as they are.
    assert str(comparison / "kd-seed0") in page.text
    assert "--config=<script>alert(1)</script>.py" in page.text


def test_the_table_tells_what_the_summaries_tell(comparison, made):
    rows = Page(made).table("method", "model")
    assert [row["method"] for row in rows] == ["teacher", "alone", "kd"]
    kd, teacher = summary(comparison / "kd-seed0"), summary(comparison / "teacher")["student"]
    measured = [teacher, summary(comparison / "alone-seed0")["student"], kd["student"]]
    # The run has a copy of the teacher's file, which is what it measured.
    measured[0]["bytes"] = kd["teacher"]["bytes"]
    for row, found in zip(rows, measured):
        assert row["model"] == "resnet8" and row["runs"] == "1"
        assert row["test %"] == f"{100 * found['test_accuracy']:.2f}"
        assert row["validation %"] == f"{100 * found['validation_accuracy']:.2f}"
        assert row["parameters"] == f"{found['parameters']:,}"
        assert row["multiply-adds"] == f"{found['multiply_adds']:,}"
        assert row["size"] == f"{found['bytes'] / 1024:,.0f} kB"
    speeds = [kd["teacher"]["images_per_second"], kd["student"]["images_per_second"]]
    assert [rows[0]["images/s"], rows[2]["images/s"]] == [f"{speed:,}" for speed in speeds]
    assert rows[2]["faster"] == f"{speeds[1] / speeds[0]:,.1f}×" and rows[2]["smaller"] == "1.0×"
    gain = kd["student"]["test_accuracy"] - measured[1]["test_accuracy"]
    assert rows[2]["against alone"] == f"{100 * gain:+.2f}".replace("-", "−")


def test_confusions_are_those_of_the_models(comparison, data_dir, made):
    data = tfkd.data.load("digits", batch_size=100, data_dir=data_dir)
    labels = np.concatenate([truth for _, truth in data.test])
    counts = {}
    for method in ("alone", "kd"):
        model = keras.models.load_model(comparison / f"{method}-seed0" / "student.keras")
        said = np.concatenate([model.predict_on_batch(x).argmax(-1) for x, _ in data.test])
        counts[method] = np.zeros((10, 10), int)
        for truth, one in zip(labels, said):
            counts[method][truth, one] += truth != one
    rows = Page(made).table("class", "taken for")
    assert len(rows) == confusion.PAIRS
    for row in rows:
        pair = int(row["class"]), int(row["taken for"])
        assert (int(row["alone"]), int(row["kd"])) == (counts["alone"][pair], counts["kd"][pair])
    change = np.abs(counts["kd"] - counts["alone"])
    largest = sorted(change.ravel())[::-1][: len(rows)]
    assert [abs(int(row["change"].replace("−", "-"))) for row in rows] == largest


def test_predictions_are_kept(comparison, copied, data_dir, made, tmp_path, monkeypatch):
    assert report([comparison], tmp_path / "page.html", data_dir).read_bytes() == made.read_bytes()
    calls = []
    whole = measure.predictions
    monkeypatch.setattr(measure, "predictions", lambda *a: calls.append(a) or whole(*a))
    run, kept = runs.Run(copied / "kd-seed0"), copied / "kd-seed0" / "predictions-student.npz"
    predictions, before = confusion.Predictions(data_dir), kept.read_bytes()
    classes, labels = predictions.of(run)
    assert not calls and np.mean(classes == labels) == run.summary["student"]["test_accuracy"]
    # Of a model that is no longer there, or half written.
    shutil.copy(copied / "alone-seed0" / "predictions-student.npz", kept)
    for repaired in (1, 2):
        np.testing.assert_array_equal(predictions.of(run)[0], classes)
        assert kept.read_bytes() == before and len(calls) == repaired
        kept.write_bytes(before[:100])
    assert not predictions.warnings
    run.summary["student"]["test_accuracy"] = 0.99
    predictions.of(run)
    assert "99.00% when it was trained" in predictions.warnings[0]


def test_without_a_student_alone_the_teacher_is_the_baseline(copied, data_dir):
    page = Page(report([copied / "kd-seed0"], data_dir=data_dir))
    (row, *_) = page.table("class", "taken for")
    assert list(row) == ["class", "taken for", "teacher", "kd", "change"]
    assert (copied / "kd-seed0" / "predictions-teacher.npz").exists()
    assert "that the teacher gets wrong" in page.text


def test_seeds_make_one_group(copied):
    accuracies = [summary(copied / "kd-seed0")["student"]["test_accuracy"], 0.5]
    other = another_seed(copied / "kd-seed0", student__test_accuracy=0.5)
    with open(other / "metrics.csv", encoding="utf-8") as file:
        logged = next(csv.DictReader(file))
    text = (other / "metrics.csv").read_text().replace(logged["accuracy"], "0.75")
    (other / "metrics.csv").write_text(text)
    page = Page(report([copied], confusions=False))
    row = page.table("method", "model")[2]
    deviation = abs(accuracies[0] - accuracies[1]) / 2**0.5
    assert row["runs"] == "2"
    assert row["test %"] == f"{100 * np.mean(accuracies):.2f} ± {100 * deviation:.2f}"
    (curve,) = [one for one in page.curves() if one.startswith("Training accuracy")]
    assert f"kd {(float(logged['accuracy']) + 0.75) / 2:.4g}" in curve
    assert "Confusions" not in page.text


def test_runs_of_other_configs_are_told_apart(copied):
    other = another_seed(copied / "kd-seed0")
    for name, prefix in (("config.json", ""), ("summary.json", "config__")):
        change(other / name, **{f"{prefix}epochs": 7})
    page = Page(report([copied / "kd-seed0", other], confusions=False))
    rows = page.table("method", "model")
    assert [row["method"] for row in rows] == ["teacher", "kd (epochs=1)", "kd (epochs=7)"]
    (row,) = [row for row in page.table("setting") if row["setting"] == "epochs"]
    assert row == {
        "setting": "epochs",
        "default": "30",
        "here": "1 (kd (epochs=1))7 (kd (epochs=7))",
    }
    # Another data set is another section, with a table of its own.
    for name, prefix in (("config.json", ""), ("summary.json", "config__")):
        change(other / name, **{f"{prefix}data__name": "fashion_mnist"})
    sections = runs.group(runs.find([copied / "kd-seed0", other])[0])
    assert [one.name for one in sections] == ["digits", "fashion_mnist"]
    assert [group.label for one in sections for group in one.groups] == ["kd", "kd"]


def test_what_a_run_has_beside_is_shown(copied):
    workdir = copied / "kd-seed0"
    change(workdir / "summary.json", check__warnings=["<i>the teacher</i> is near chance"])
    one = summary(workdir)["student"]
    change(workdir / "summary.json", learners={"fused": {**one, "test_accuracy": 0.123}})
    original = {
        "bytes": 20480,
        "test_accuracy": 0.5,
        "milliseconds_per_image": 1.0,
        "milliseconds_per_batch": 8.0,
        "batch_size": 32,
    }
    small = {**original, "bytes": 1024, "equal_predictions": 0.99, "largest_difference": 0.25}
    exported = {"student": {"original": original, "tflite-int8": small}}
    (workdir / "export.json").write_text(json.dumps(exported))
    Image.new("RGB", (20, 10)).save(workdir / "spots_per_class.png")
    (workdir / "broken.png").write_bytes(b"\x89PNG")
    for epoch in (1, 2):
        image = Image.new("RGB", (epoch, 5))
        (workdir / "pictures").mkdir(exist_ok=True)
        image.save(workdir / "pictures" / f"divergent-epoch{epoch:03d}.png")
    page = Page(report([workdir], confusions=False))
    assert "<i>the teacher</i> is near chance" in page.text
    assert (
        page.table("method")[-1] | {"method": "kd, fused", "test %": "12.30"}
        == (page.table("method")[-1])
    )
    whole, small = page.table("format")
    assert whole["format"] == "student, original" and whole["size on disk"] == "20 kB"
    assert small["format"] == "student, tflite-int8" and small["size on disk"] == "1 kB"
    assert small["equal predictions %"] == "99.00" and small["ms, batch"] == "8.00 (32)"
    shown = [(one["alt"], one["width"]) for one in page.images if "width" in one]
    assert shown == [("Spots per class", "20"), ("Divergent, after epoch 2", "2")]
    assert "broken.png is damaged" in page.text
    assert page.table("loss", "value")[-1]["loss"] == "kd_loss"


def test_directories_without_a_complete_run(copied, tmp_path, capsys):
    (copied / "alone-seed0" / "summary.json").unlink()
    (tmp_path / "foreign").mkdir()
    paths = [copied, tmp_path / "foreign", copied / "kd-seed0"]
    page = Page(report(paths, tmp_path / "new" / "page.html", confusions=False))
    assert [row["method"] for row in page.table("method")] == ["teacher", "kd"]
    lines = [one for one in capsys.readouterr().out.splitlines() if one.startswith("left out: ")]
    assert len(lines) == 2 and "alone-seed0 has no summary.json" in lines[0]
    assert page.text.count("Left out: ") == 2
    (copied / "kd-seed0" / "metrics.csv").write_text("epoch,loss\n1,many\n")
    with pytest.raises(UsageError, match="no complete run to report: .*alone-seed0.*2 more are"):
        report(paths)
    with pytest.raises(UsageError, match="metrics.csv is damaged"):
        report([copied / "kd-seed0"])
    with pytest.raises(UsageError, match="there is no such directory"):
        report([copied / "teacher", tmp_path / "kd-sed0"])
    with pytest.raises(UsageError, match="--output=.* is a directory"):
        report([copied / "teacher"], tmp_path)
    assert not (copied / "report.html").exists()


def test_a_model_that_is_gone_costs_the_confusions_only(copied, data_dir):
    for path in copied.glob("*/student.keras"):
        path.unlink()
    page = Page(report([copied], data_dir=data_dir))
    assert "Predictions were not compared" in page.text
    assert [row["method"] for row in page.table("method")] == ["teacher", "alone", "kd"]


def test_changes_by_hand():
    labels = np.array([0, 0, 0, 1, 1, 2])
    before = [np.array([1, 1, 0, 1, 2, 2]), np.array([1, 0, 0, 1, 2, 0])]
    after = [np.array([0, 0, 0, 1, 0, 2])]
    found = confusion.changes(before, after, labels, 3)
    told = [(one.true, one.predicted, one.before[0], one.after[0]) for one in found.pairs]
    # The largest change first; of equal ones the more frequent confusion.
    assert told == [(0, 1, 1.5, 0), (1, 2, 1, 0), (1, 0, 0, 1), (2, 0, 0.5, 0)]
    assert found.pairs[0].before[1] == pytest.approx(2**-0.5) and found.pairs[0].after[1] is None
    assert [(one.index, one.votes) for one in found.pairs[0].images] == [(0, (2, 0)), (1, (1, 0))]
    assert [(one.index, one.said) for one in found.pairs[2].images] == [(4, (2, 0))]
    # Against the first model two images are corrected, against the second one two others.
    assert (found.corrected, found.spoilt) == (2, 0) and found.models == (2, 1)


def test_photographs_of_a_folder_are_shown_by_the_names_of_their_folders(tmp_path):
    for split in ("train", "test"):
        for shade, name in enumerate(("dark", "light")):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(2):
                image = Image.new("RGB", (150, 120), (20 + 150 * shade, 40 * number, 0))
                image.save(tmp_path / split / name / f"{number}.png")
    data = tfkd.data.load(tmp_path, image_size=120, batch_size=2, validation=0, verbose=False)
    labels = np.concatenate([labels for _, labels in data.pixels("test").as_numpy_iterator()])
    changes = confusion.changes([1 - labels], [labels], labels, data.num_classes)
    named = {(data.class_names[one.true], data.class_names[one.predicted]) for one in changes.pairs}
    assert named == {("dark", "light"), ("light", "dark")}
    shown = page._examples(changes, data)
    assert sorted(shown) == [0, 1, 2, 3]
    for index, uri in shown.items():
        image = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
        assert image.size == (96, 96) and image.getpixel((48, 48))[0] == 20 + 150 * labels[index]


def test_logs_of_one_kind_are_drawn_together():
    names = "kd_loss student_loss discriminator_real_accuracy discriminator_fake_accuracy"
    names += " auxiliary1_accuracy fused_accuracy val_fused_accuracy swapped_share swapped_stage1"
    names += " keep_probability divergent_loss divergent_mutual_loss"
    found = curves.together(names.split())
    assert found == {
        "Loss": {
            "kd": "kd_loss",
            "student": "student_loss",
            "divergent": "divergent_loss",
            "divergent mutual": "divergent_mutual_loss",
        },
        "Accuracy": {
            "discriminator real": "discriminator_real_accuracy",
            "discriminator fake": "discriminator_fake_accuracy",
            "auxiliary1": "auxiliary1_accuracy",
            "fused": "fused_accuracy",
        },
        "Swapped": {"share": "swapped_share", "stage1": "swapped_stage1"},
        "Fused accuracy in validation": {"val_fused_accuracy": "val_fused_accuracy"},
        "Keep probability": {"keep_probability": "keep_probability"},
    }


def test_accuracies_share_an_axis():
    rows = [
        table.Row(results.Result("student", test, [], 1, 1, 1, 1), "m", "kd")
        for test in ([0.9, 0.94], [0.96])
    ]
    ticks, lines = table.strips(rows)
    assert ticks[0][0] == 0 and ticks[-1][0] == 100
    low, high = ticks[0][1], ticks[-1][1]
    for row, places, mean in lines:
        assert places == pytest.approx(
            [100 * (100 * x - low) / (high - low) for x in row.result.test], abs=0.01
        )
        assert mean == pytest.approx(np.mean(places), abs=0.01)


@pytest.fixture
def call(monkeypatch):
    """Runs the command in this process."""
    known = set(flags.FLAGS)
    command._define_flags()

    def run(*arguments):
        flags.FLAGS.unparse_flags()
        monkeypatch.setattr(sys, "argv", ["report", *map(str, arguments)])
        command_line.main_without_config(command.main)

    yield run
    for name in set(flags.FLAGS) - known:
        delattr(flags.FLAGS, name)


def test_the_command(call, comparison, tmp_path, capsys):
    output = tmp_path / "page.html"
    paths = f"--workdir={comparison}/kd-seed0,{comparison}/alone-seed0"
    call(paths, "--noconfusions", comparison / "teacher", f"--output={output}")
    left_out, written = capsys.readouterr().out.splitlines()
    # It is a copy: counted again it would make up a deviation of 0.
    assert left_out.endswith(f"teacher has the config and the seed of {comparison}/alone-seed0.")
    assert written == f"Written: {output}"
    rows = Page(output).table("method")
    assert [(row["method"], row["runs"]) for row in rows[1:]] == [("alone", "1"), ("kd", "1")]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "--workdir=DIR is missing"),
        (["--workdir=one", "--workdir=two"], "--workdir is given several times"),
        (["--workdir=nowhere"], "there is no such directory"),
        (["--workdirs=nowhere"], "Unknown command line flag 'workdirs'"),
    ],
)
def test_mistakes_in_the_command(call, arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        call(*arguments)
    assert stop.value.code == errors.MISTAKE
    told = [one for one in capsys.readouterr().err.splitlines() if one.startswith("error: ")]
    assert len(told) == 1 and message in told[0]


@pytest.mark.slow
def test_the_module_runs(comparison, tmp_path):
    command = [sys.executable, "-m", "tfkd.report", f"--workdir={comparison}", "--noconfusions"]
    command.append(f"--output={tmp_path}/page.html")
    process = subprocess.run(command, capture_output=True, encoding="utf-8", env=os.environ)
    assert process.returncode == 0, process.stderr
    assert Page(tmp_path / "page.html").table("method")


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """Pages of a method with learners, of several seeds and of one run."""
    folder = tmp_path_factory.mktemp("shown")
    chosen, _ = config.from_arguments("runlocal", teacher="resnet14", student="resnet8")
    chosen.data.train_examples, chosen.data.batch_size = 64, 32
    chosen.epochs = chosen.teacher.epochs = 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(folder / "tfds"))
        compare.compare(chosen, folder / "runs", ["alone", "ackd", "acn"], 1)
    another_seed(folder / "runs" / "ackd-seed0", student__test_accuracy=0.5)
    single = folder / "runs" / "acn-seed0"
    return [
        report([folder / "runs"], folder / "comparison.html", folder / "tfds"),
        report([single], folder / "single.html", folder / "tfds"),
    ]


@pytest.mark.slow
@pytest.mark.skipif(
    CHROMIUM is None or importlib.util.find_spec("playwright") is None,
    reason="needs a browser: apt-get install chromium, and pip install playwright",
)
@pytest.mark.parametrize("width", [375, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_the_page(shown, width, scheme):
    from playwright import sync_api as playwright

    with playwright.sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for path in shown:
            page = browser.new_page(
                viewport={"width": width, "height": 800}, color_scheme=scheme, offline=True
            )
            told, requests = [], []
            page.on("console", lambda message, told=told: told.append(message.text))
            page.on("pageerror", lambda error, told=told: told.append(str(error)))
            page.on("request", lambda request, requests=requests: requests.append(request.url))
            page.goto(path.as_uri())
            page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
            assert told == []
            assert {url.split(":")[0] for url in requests} <= {"file", "data"}
            images = page.evaluate("[...document.images].map(one => one.naturalWidth)")
            assert images and all(images)
            root = "document.documentElement"
            assert page.evaluate(f"{root}.scrollWidth") == page.evaluate(f"{root}.clientWidth")
            # What matters of the results is in sight, and where there is more a line says so.
            table = "document.querySelector('.results')"
            cut = page.evaluate(f"{table}.clientWidth > {table}.parentElement.clientWidth")
            assert cut == page.is_visible(".sideways") == (width == 375)
            (edge,) = page.evaluate(
                f"[...{table}.querySelectorAll('th')].filter(one => one.innerText == 'test %')"
                ".map(one => one.getBoundingClientRect().right)"
            )
            assert edge <= width
            curves_shown = page.evaluate(
                "[...document.querySelectorAll('.curves img')].map(one => one.clientWidth)"
            )
            assert curves_shown and min(curves_shown) >= 300
            # Text is told from its ground, in the one scheme and the other.
            assert min(page.evaluate(_CONTRASTS)) >= 4.5
        browser.close()


#: The contrast of the text in various places with the page, as WCAG defines it.
_CONTRASTS = """
(() => {
  const channels = colour => colour.match(/[\\d.]+/g).slice(0, 3).map(Number);
  const luminance = colour => channels(colour)
    .map(one => one / 255)
    .map(one => one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4)
    .reduce((sum, one, i) => sum + one * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = luminance(getComputedStyle(document.body).backgroundColor);
  const places = 'p, td, th, figcaption, a, summary, .muted, .up, .down, svg.strip text';
  return [...document.querySelectorAll(places)].map(one => {
    const style = getComputedStyle(one);
    const text = luminance(one.namespaceURI.endsWith('svg') ? style.fill : style.color);
    return (Math.max(text, ground) + 0.05) / (Math.min(text, ground) + 0.05);
  });
})()
"""
