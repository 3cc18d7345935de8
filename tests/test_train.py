"""Runs as users run them: flags in, artefacts out, mistakes answered by one line."""

import contextlib
import copy
import csv
import functools
import json
import re
import shutil
import signal
import subprocess
import sys
import types

import keras
import mistakes
import numpy as np
import pytest
from commands import SMALL, call, refused

import tfkd
import tfkd.config
from tfkd import check, command_line, compare, evaluate, train
from tfkd.errors import UsageError
from tfkd.report import report
from tfkd.runs import (
    assemble,
    checkpoint,
    evaluation,
    fitting,
    guard,
    longer,
    measure,
    studies,
    work_directory,
)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return f"--data_dir={tmp_path_factory.mktemp('tfds')}"


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data_dir):
    """A work directory of a complete run."""
    workdir = tmp_path_factory.mktemp("runs") / "complete"
    call(train.train, *SMALL, data_dir, f"--workdir={workdir}")
    return workdir


@pytest.fixture
def small(finished):
    """The flags of a small run whose teacher is there already."""
    return [SMALL[0].replace("teacher=resnet14", f"teacher={finished}/teacher.keras"), *SMALL[1:]]


def weights(workdir, name="student"):
    return keras.models.load_model(workdir / f"{name}.keras").get_weights()


def assert_same_run(one, other, models=("teacher", "student")):
    names = [path.stem for path in one.glob("*.keras")]
    assert set(models) <= set(names)
    for name in names:
        for a, b in zip(weights(one, name), weights(other, name), strict=True):
            np.testing.assert_array_equal(a, b)
    assert (one / "metrics.csv").read_text() == (other / "metrics.csv").read_text()
    checks = [json.loads((run / "summary.json").read_text())["check"] for run in (one, other)]
    assert checks[0] == checks[1]


@pytest.mark.slow
def test_a_teacher_of_other_classes_teaches_features(tmp_path, data_dir, capsys):
    teacher, workdir = tmp_path / "seven.keras", tmp_path / "run"
    tfkd.models.create("resnet14", num_classes=7, input_shape=(8, 8, 1)).save(teacher)
    config = SMALL[0].replace("teacher=resnet14", f"teacher={teacher},method=fitnet")
    call(train.train, config, *SMALL[1:], data_dir, f"--workdir={workdir}")
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["teacher"]["test_accuracy"] is summary["check"]["teacher"]["accuracy"] is None
    assert 0 <= summary["student"]["test_accuracy"] <= 1
    scores, _ = evaluate.evaluate(workdir, data_dir=data_dir.partition("=")[2])
    assert list(scores) == ["student"]
    with pytest.raises(UsageError, match="'teacher' .* has 7 classes, and the data 10"):
        evaluate.evaluate(workdir, model="teacher", data_dir=data_dir.partition("=")[2])
    page = report([workdir], tmp_path / "page.html", data_dir.partition("=")[2])
    text = page.read_text(encoding="utf-8")
    assert "seven.keras" in text and "no teacher of the same classes" in text


def test_a_run_leaves_its_artefacts(finished):
    summary = json.loads((finished / "summary.json").read_text())
    student = keras.models.load_model(finished / "student.keras")
    plain = tfkd.models.create("resnet8", num_classes=10, input_shape=(8, 8, 1))
    assert student.count_params() == plain.count_params() == summary["student"]["parameters"]
    assert (finished / "student.keras").stat().st_size == summary["student"]["bytes"]
    assert 0 <= summary["student"]["test_accuracy"] <= 1
    assert summary["teacher"]["parameters"] > summary["student"]["parameters"]
    with open(finished / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert {"loss", "student_loss", "kd_loss", "accuracy", "val_accuracy"} <= set(rows[0])
    assert json.loads((finished / "config.json").read_text())["method"]["name"] == "kd"
    assert summary["check"]["losses"]["kd_loss"]["weighted"] > 0
    assert summary["check"]["teacher"]["parameters"] == summary["teacher"]["parameters"]
    assert list((finished / "tensorboard").rglob("events*"))
    assert (finished / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert not list(finished.rglob("*.partial.*"))
    assert (finished / "class_names.txt").read_text().split() == [*"0123456789"]


@pytest.mark.parametrize(
    "there, message",
    [
        ("cat\ndög\n", None),
        ("cat\nfox\n", "changed: dög, fox"),
        ("cat\n", "changed: dög"),
        ("dög\ncat\n", "changed: their order"),
    ],
)
def test_a_run_goes_on_with_the_classes_that_it_began_with(tmp_path, there, message):
    data = types.SimpleNamespace(name="photos", class_names=("cat", "dög"))
    work_directory.check_class_names(tmp_path, data)  # A run of before has none.
    (tmp_path / "class_names.txt").write_text(there, encoding="utf-8")
    if message is None:
        work_directory.check_class_names(tmp_path, data)
        work_directory.write_class_names(tmp_path / "again.txt", data.class_names)
        assert (tmp_path / "again.txt").read_text(encoding="utf-8") == there
        return
    with pytest.raises(UsageError, match=message):
        work_directory.check_class_names(tmp_path, data)


def test_a_run_on_a_folder_says_what_it_found_and_names_a_broken_file(tmp_path, capsys):
    for split in ("train", "val", "test"):
        for shade, name in enumerate(("dark", "light")):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for number in range(8):
                image = np.full((8, 8, 3), 100 * shade + number, np.uint8)
                keras.utils.save_img(folder / f"{number}.png", image)
    broken = tmp_path / "photos/train/dark/3.png"
    broken.write_bytes(broken.read_bytes()[:-30])
    flags = [
        SMALL[0].replace(":", ":method=alone,"),
        f"--config.data.name={tmp_path / 'photos'}",
        "--config.data.batch_size=5",
        "--config.data.train_examples=10",
        "--config.epochs=1",
    ]
    workdir = tmp_path / "run"
    line = refused(capsys, check.check, *flags, needs_workdir=False)
    assert line.startswith(f"error: Image {broken} cannot be decoded, ") and "skip_broken" in line
    assert refused(capsys, train.train, *flags, f"--workdir={workdir}") == line
    assert not workdir.exists()
    call(train.train, *flags, "--config.data.skip_broken=True", f"--workdir={workdir}")
    printed = capsys.readouterr().out
    assert "train 15 (train/), validation 16 (val/), test 16 (test/); 2 classes\n" in printed
    assert f"Left out: 1 broken file ({broken})\n" in printed
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["data"] == {"train": 10, "validation": 16, "test": 16}
    assert (workdir / "class_names.txt").read_text() == "dark\nlight\n"


def test_the_summary_tells_what_the_saved_student_does(finished, data_dir):
    data = tfkd.data.load("digits", batch_size=100, data_dir=data_dir.removeprefix("--data_dir="))
    student = keras.models.load_model(finished / "student.keras")
    hits = [np.argmax(student(x), -1) == y.numpy() for x, y in data.test]
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["student"]["test_accuracy"] == pytest.approx(np.mean(np.concatenate(hits)))


def test_the_same_command_again_changes_nothing(finished, data_dir, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    call(train.train, *SMALL, data_dir, f"--workdir={finished}")
    assert "complete" in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()}


def interrupted(capsys, arguments, stage, epoch):
    """Runs a command until Ctrl-C comes, after the first batch of an epoch of a stage."""
    batch_end = fitting.Progress.on_train_batch_end

    def interrupt(self, batch, logs=None):
        batch_end(self, batch, logs)
        here = "teacher" if self.folder.name == "teacher" else "student"
        if here == stage and len(self.history) == epoch:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(fitting.Progress, "on_train_batch_end", interrupt)
        call(train.train, *arguments)
    assert stop.value.code == command_line.INTERRUPTED
    assert "the same command resumes" in capsys.readouterr().err
    # What a resumed process draws before must not matter.
    keras.utils.set_random_seed(99)


@pytest.mark.slow
@pytest.mark.parametrize("stage, epoch", [("teacher", 1), ("student", 0)])
def test_an_interrupted_run_resumes_to_the_same_bits(
    stage, epoch, finished, small, tmp_path, data_dir, capsys
):
    workdir = tmp_path / "run"
    flags_ = SMALL if stage == "teacher" else small
    arguments = [*flags_, data_dir, f"--workdir={workdir}"]
    interrupted(capsys, arguments, stage, epoch)
    call(train.train, *arguments)
    assert ("resuming after epoch 1 of 2" in capsys.readouterr().out) == (epoch == 1)
    assert_same_run(finished, workdir)


TINY_GAME = "generator_width=4:generator_blocks=1:discriminator_width=4"
PEERS = ("student", "student2", "ensemble")


@pytest.mark.slow
@pytest.mark.parametrize(
    "method, stage, models",
    [
        ("ft", "preparation_ft", ("teacher", "student")),
        ("ft", "run", ("teacher", "student")),
        ("crd", "run", ("teacher", "student")),
        ("ackd", "run", ("teacher", "student", "fused")),
        ("iakd", "run", ("teacher", "student")),
        ("sakd+at", "run", ("teacher", "student")),
        ("mutual", "run", PEERS),
        ("kdcl:targets=general", "run", PEERS),
        ("pcl", "run", ("student", "averaged", "ensemble")),
        # Of both the last epoch, the one that is resumed, comes after the warm-up.
        (f"acn:warm_up=0:{TINY_GAME}", "run", PEERS),
        (f"acn:warm_up=1:{TINY_GAME}", "run", PEERS),
    ],
)
def test_methods_with_a_state_of_their_own_resume_too(
    method, stage, models, small, tmp_path, data_dir, monkeypatch
):
    config = [small[0].replace("runlocal", f"method={method},runlocal"), *small[1:], data_dir]
    config += ["--config.method.preparation_epochs=2"] if method == "ft" else []
    call(train.train, *config, f"--workdir={tmp_path / 'whole'}")
    epoch_begin = fitting.Progress.on_epoch_begin

    def interrupt(self, epoch, logs=None):
        epoch_begin(self, epoch, logs)
        if self.folder.name == stage and epoch == 1:
            raise KeyboardInterrupt

    arguments = [*config, f"--workdir={tmp_path / 'run'}"]
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(fitting.Progress, "on_epoch_begin", interrupt)
        call(train.train, *arguments)
    call(train.train, *arguments)
    assert_same_run(tmp_path / "whole", tmp_path / "run", models)
    if method == "iakd":
        summary = json.loads((tmp_path / "run" / "summary.json").read_text())
        assert 0 < summary["reestimation"]["share_of_training"] < 1
    if method.startswith("acn"):
        assert work_directory.history(tmp_path / "run")[-1]["generator_loss"] > 0
        assert (tmp_path / "run" / "pictures" / "divergent-epoch002.png").exists()


def test_a_run_starts_alike_whether_its_teacher_was_there_or_not(data_dir):
    """Making a teacher draws random numbers, and loading one does not."""
    config = tfkd.config.default_config("ackd", "resnet14", "resnet8")
    folder = data_dir.removeprefix("--data_dir=")
    data = tfkd.data.load("digits", train_examples=64, batch_size=32, data_dir=folder)
    teacher = tfkd.models.create("resnet14", data.num_classes, data.input_shape, seed=1)
    starts = []
    for drawn_before in (1, 2):
        keras.utils.set_random_seed(drawn_before)
        distiller = assemble.build(config, data, teacher)
        starts.append([variable.numpy() for variable in checkpoint.variables_of(distiller)])
    for a, b in zip(*starts, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_ctrl_c_in_a_process_of_its_own(tmp_path, data_dir):
    def command(name):
        config = SMALL[0].replace("runlocal", "method=alone,runlocal")
        # Long enough that a busy machine does not finish it before the signal arrives.
        flags_ = [config, *SMALL[1:], "--config.epochs=5", data_dir, f"--workdir={tmp_path / name}"]
        return [sys.executable, "-m", "tfkd.train", *flags_]

    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # What runs the tests may ignore it, and so would its children.
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command("interrupted"), preexec_fn=heed, **pipes)
    for line in process.stdout:
        if line.startswith("epoch 1/5"):
            process.send_signal(signal.SIGINT)
            break
    _, errors = process.communicate(timeout=120)
    assert process.returncode == command_line.INTERRUPTED, errors
    assert "the same command resumes" in errors and "Traceback" not in errors
    again = subprocess.run(command("interrupted"), timeout=240, check=True, **pipes)
    assert "resuming after epoch 1" in again.stdout
    # In a process like the others: the bits of a sum depend on how many threads share it.
    subprocess.run(command("whole"), timeout=240, check=True, **pipes)
    for a, b in zip(weights(tmp_path / "whole"), weights(tmp_path / "interrupted"), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_replicas_train(tmp_path, small, data_dir, finished):
    call(
        train.train,
        *small,
        data_dir,
        f"--workdir={tmp_path}",
        "--strategy=mirrored",
        "--replicas=2",
    )
    for a, b in zip(weights(tmp_path), weights(finished), strict=True):
        np.testing.assert_allclose(a, b, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    "precision",
    [pytest.param(name, marks=pytest.mark.slow) for name in ("mixed_bfloat16", "mixed_float16")],
)
def test_precisions_train(tmp_path, small, data_dir, precision):
    call(train.train, *small, data_dir, f"--workdir={tmp_path}", f"--precision={precision}")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["student"]["parameters"] > 0
    history = work_directory.history(tmp_path)
    assert all(np.isfinite(value) for row in history for value in row.values())


@pytest.mark.slow
def test_mixing_labels_trains(tmp_path, small, data_dir):
    mixing = ["--config.data.mixup=0.2", "--config.data.cutmix=1.0"]
    call(train.train, *small, data_dir, f"--workdir={tmp_path}", *mixing)
    assert "student_loss" in work_directory.history(tmp_path)[0]


@pytest.mark.slow
def test_without_validation(tmp_path, small, data_dir):
    none = ["--config.data.validation=0.0", "--config.epochs=1"]
    call(train.train, *small, data_dir, f"--workdir={tmp_path}", *none)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["student"]["validation_accuracy"] is None


@pytest.mark.slow
def test_a_given_teacher_is_used_and_not_trained(finished, small, tmp_path, data_dir):
    call(train.train, *small, data_dir, f"--workdir={tmp_path}")
    assert not (tmp_path / "teacher").exists()
    for name in ("teacher", "student"):
        for a, b in zip(weights(tmp_path, name), weights(finished, name), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_a_given_teacher_may_take_other_images(tmp_path, data_dir, capsys):
    """It is checked, and its accuracy measured, on its own images."""
    teacher = tfkd.models.create("resnet8", num_classes=10, input_shape=(16, 16, 3), seed=1)
    teacher.save(tmp_path / "teacher.keras")
    path = f"teacher={tmp_path / 'teacher.keras'}"
    given = [SMALL[0].replace("teacher=resnet14", path), *SMALL[1:], "--config.epochs=1", data_dir]
    line = refused(capsys, train.train, *given, f"--workdir={tmp_path / 'refused'}")
    assert "set --config.teacher.image_size=16" in line
    own = ["--config.teacher.image_size=16", "--config.teacher.scale=255.0"]
    call(train.train, *given, *own, f"--workdir={tmp_path / 'run'}")
    printed = capsys.readouterr().out
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    (warning,) = [w for w in summary["check"]["warnings"] if "near chance" in w]
    assert f"warning: {warning}" in printed
    data = tfkd.data.load("digits", data_dir=data_dir.removeprefix("--data_dir="))
    layer = tfkd.layers.TeacherPreprocessing(
        size=16, scale=255, channels=3, student_mean=data.mean, student_std=data.std
    )
    hits = [np.argmax(teacher(layer(x)), -1) == y.numpy() for x, y in data.test]
    expected = np.mean(np.concatenate(hits))
    assert summary["teacher"]["test_accuracy"] == pytest.approx(expected, abs=0.01)


@pytest.mark.slow
def test_the_check_can_be_left_out(tmp_path, small, data_dir, capsys):
    call(train.train, *small, data_dir, f"--workdir={tmp_path}", "--config.check=False")
    assert "check" not in json.loads((tmp_path / "summary.json").read_text())
    assert "check on" not in capsys.readouterr().out


@pytest.mark.slow
def test_diagnostics_of_a_run(tmp_path, data_dir, capsys):
    alone = [SMALL[0].replace("runlocal", "method=alone,runlocal"), *SMALL[1:], data_dir]
    once = ["--config.epochs=1", "--config.diagnostics=True", f"--workdir={tmp_path}"]
    call(train.train, *alone, *once)
    # On the screen the line of an epoch stays short.
    assert "calibration_error" not in capsys.readouterr().out
    (logs,) = work_directory.history(tmp_path)
    assert {"calibration_error", "gradient_norm", "val_accuracy"} <= logs.keys()
    summary = json.loads((tmp_path / "summary.json").read_text())["diagnostics"]
    # Times differ between runs that are alike in everything else: they are no metrics.
    assert not [name for name in logs if name.endswith("_seconds")]
    assert summary["seconds"] > 0
    assert 0 < summary["share_of_training"] < 1
    assert (tmp_path / "diagnostics.png").read_bytes().startswith(b"\x89PNG")


def test_peak_memory_is_that_of_this_process(tmp_path, monkeypatch):
    """That of `resource`, for systems without the file, begins with what the parent has used."""
    status = tmp_path / "status"
    monkeypatch.setattr(measure, "_STATUS", status)
    assert measure.peak_memory() > 2**20
    status.write_text("VmPeak:\t  999 kB\nVmHWM:\t  123 kB\n", "utf-8")
    assert measure.peak_memory() == 123 * 1024
    status.unlink()
    monkeypatch.setattr(measure, "resource", None)
    assert measure.peak_memory() is None


def test_a_teacher_may_have_another_precision(finished, small, data_dir, tmp_path):
    config = tfkd.config.default_config("kd", str(finished / "teacher.keras"), "resnet8")
    config.teacher.precision = "mixed_bfloat16"
    data = types.SimpleNamespace(num_classes=10, input_shape=(8, 8, 1), mean=(0,), std=(1,))
    x = np.random.default_rng(0).normal(size=(8, 8, 8, 1)).astype("float32")
    plain = keras.models.load_model(finished / "teacher.keras")
    found = assemble.get_teacher(config, data, None)
    assert found(x).dtype == "bfloat16"
    np.testing.assert_allclose(
        np.array(found(x), "float32"), plain(x), atol=0.05 * np.abs(plain(x)).max()
    )
    config.teacher.model, config.teacher.path = "resnet8", ""
    assert assemble.get_teacher(config, data, None)(x).dtype == "bfloat16"
    config.teacher.precision = "float8"
    with pytest.raises(UsageError, match="Unknown --config.teacher.precision 'float8'"):
        tfkd.config.check(config)


@pytest.mark.slow
def test_a_cached_teacher_trains_the_same_student(tmp_path, small, data_dir, capsys):
    views = [*small, data_dir, "--config.data.views=1"]
    call(train.train, *views, f"--workdir={tmp_path / 'plain'}")
    cached = [*views, "--config.teacher.cache=True"]
    call(train.train, *cached, f"--workdir={tmp_path / 'cached'}")
    assert "teacher outputs: logits, pooled of 1 view of 64 images" in capsys.readouterr().out
    assert_same_run(tmp_path / "plain", tmp_path / "cached", models=("student",))


@pytest.mark.slow
def test_diagnostics_change_nothing_in_a_run(tmp_path, small, data_dir, finished, capsys):
    run = [*small, data_dir, f"--workdir={tmp_path}"]
    call(train.train, *run, "--config.diagnostics=True")
    history, plain = work_directory.history(tmp_path), work_directory.history(finished)
    for logs, without in zip(history, plain, strict=True):
        assert {name: logs[name] for name in without} == without
        assert {"teacher_kl", "gradient_share/kd_loss", "cka/stage3"} <= logs.keys()
    assert not (finished / "diagnostics.png").exists()
    # A run goes on without them, and one begun when there were none with them.
    config = json.loads((tmp_path / "config.json").read_text())
    del config["diagnostics"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "summary.json").unlink()
    call(train.train, *run)
    assert "resuming after epoch 2 of 2" in capsys.readouterr().out
    for a, b in zip(weights(tmp_path), weights(finished), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_diagnostics_resume_to_the_same_values(tmp_path, small, data_dir, monkeypatch):
    run = [*small, data_dir, "--config.diagnostics=True"]
    call(train.train, *run, f"--workdir={tmp_path / 'whole'}")
    epoch_begin = fitting.Progress.on_epoch_begin

    def interrupt(self, epoch, logs=None):
        epoch_begin(self, epoch, logs)
        if epoch == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(fitting.Progress, "on_epoch_begin", interrupt)
        call(train.train, *run, f"--workdir={tmp_path / 'run'}")
    keras.utils.set_random_seed(99)
    call(train.train, *run, f"--workdir={tmp_path / 'run'}")
    whole, resumed = (work_directory.history(tmp_path / name) for name in ("whole", "run"))
    assert whole == resumed
    for a, b in zip(weights(tmp_path / "whole"), weights(tmp_path / "run"), strict=True):
        np.testing.assert_array_equal(a, b)


def test_only_methods_that_draw_have_images_read_for_pictures(tmp_path):
    distiller = tfkd.KnowledgeDistiller(tfkd.models.create("resnet8", 10, (8, 8, 1)))
    # There is no data to be read.
    assert fitting.epoch_pictures(distiller, None, tmp_path, []) == []


def test_what_is_not_measured_in_every_epoch_is_left_out(tmp_path):
    (tmp_path / "metrics.csv").write_text("epoch,loss,cka/stage1\n1,2.0,\n2,1.0,0.5\n")
    assert work_directory.history(tmp_path) == [
        {"epoch": 1, "loss": 2},
        {"epoch": 2, "loss": 1, "cka/stage1": 0.5},
    ]


@pytest.mark.slow
def test_select_best_saves_the_epoch_of_the_highest_validation_accuracy(tmp_path, small, data_dir):
    more = ["--config.epochs=5", "--config.select=best", "--config.optimizer.learning_rate=0.5"]
    call(train.train, *small, data_dir, f"--workdir={tmp_path}", *more)
    summary = json.loads((tmp_path / "summary.json").read_text())["student"]
    accuracies = [row["val_accuracy"] for row in work_directory.history(tmp_path)]
    assert summary["validation_accuracy"] == max(accuracies)
    assert accuracies[summary["epoch"] - 1] == max(accuracies)
    assert summary["last"]["epoch"] == 5


@pytest.mark.slow
def test_learners_are_saved_measured_and_compared(tmp_path, small, data_dir):
    workdir, method = tmp_path / "run", "ackd:auxiliary_learners=1"
    arguments = [*small, data_dir, "--config.select=best", f"--workdir={workdir}"]
    call(compare.main, *arguments, f"--methods={method}", "--seeds=1")
    folder = workdir / "ackd-auxiliary_learners=1-seed0"
    summary = json.loads((folder / "summary.json").read_text())
    fused = summary["learners"]["fused"]
    model = keras.models.load_model(folder / "fused.keras")
    data = tfkd.data.load("digits", batch_size=100, data_dir=data_dir.removeprefix("--data_dir="))
    hits = [np.argmax(model(x), -1) == y.numpy() for x, y in data.test]
    assert fused["test_accuracy"] == pytest.approx(np.mean(np.concatenate(hits)))
    logs = work_directory.history(folder)[fused["epoch"] - 1]
    assert fused["validation_accuracy"] == logs["val_fused_accuracy"]
    assert fused["epoch"] == summary["student"]["epoch"]
    assert fused["parameters"] == model.count_params()
    assert (folder / "ackd.png").read_bytes().startswith(b"\x89PNG")
    rows = json.loads((workdir / "table.json").read_text())
    assert [row["method"] for row in rows] == [method, f"{method}, fused"]
    assert [row["parameters"] for row in rows] == [
        summary["student"]["parameters"],
        model.count_params(),
    ]


@pytest.mark.slow
def test_a_comparison_writes_its_table(tmp_path, data_dir, capsys):
    arguments = [*SMALL, data_dir, f"--workdir={tmp_path}", "--methods=alone,kd", "--seeds=2"]
    call(compare.main, *arguments, "--config.method.losses.kd.temperature=2.0")
    rows = json.loads((tmp_path / "table.json").read_text())
    used = json.loads((tmp_path / "kd-seed1" / "config.json").read_text())
    assert used["method"]["losses"]["kd"]["temperature"] == 2.0 and used["seed"] == 1
    assert [(row["role"], row["method"], row["seeds"]) for row in rows] == [
        ("teacher", "alone", 1),
        ("student", "alone", 2),
        ("student", "kd", 2),
    ]
    accuracies = [
        json.loads((tmp_path / f"kd-seed{seed}" / "summary.json").read_text())["student"][
            "test_accuracy"
        ]
        for seed in (0, 1)
    ]
    assert rows[2]["accuracy"] == pytest.approx(np.mean(accuracies))
    assert rows[2]["accuracy_deviation"] == pytest.approx(np.std(accuracies, ddof=1))
    table = (tmp_path / "table.md").read_text()
    assert f"{100 * np.mean(accuracies):.2f} ± {100 * np.std(accuracies, ddof=1):.2f}" in table
    assert table.splitlines()[-1] in capsys.readouterr().out
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    # As entries of a study, which finds runs again, and a teacher in the directory of one run.
    study = {"teachers": [], "runs": []}
    for commit in ("abc", "def"):
        assert studies.add(study, tmp_path, commit) == 4
        assert studies.add(study, tmp_path / "teacher", commit) == 1
    assert {one["commit"] for one in study["runs"]} == {"abc"}
    assert [(one["method"], one["seed"]) for one in study["runs"]] == [
        ("alone", 0),
        ("alone", 1),
        ("kd", 0),
        ("kd", 1),
    ]
    assert [one["test_accuracy"] for one in study["runs"][2:]] == pytest.approx(accuracies)
    assert study["teachers"][0]["student"] == "resnet14"
    assert study["runs"][0].keys() >= {"validation_accuracy", "best_epoch", "epochs", "command"}


@pytest.mark.slow
def test_a_comparison_of_classifiers_that_teach_each_other(tmp_path, data_dir):
    arguments = [*SMALL, data_dir, f"--workdir={tmp_path}", "--methods=mutual", "--seeds=1"]
    call(compare.main, *arguments)
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"mutual-seed0"}
    folder = tmp_path / "mutual-seed0"
    assert not list(tmp_path.rglob("teacher*"))
    summary = json.loads((folder / "summary.json").read_text())
    assert "teacher" not in summary and summary["peers"] == ["student2"]
    rows = json.loads((tmp_path / "table.json").read_text())
    assert [row["method"] for row in rows] == [
        "mutual",
        "mutual, student2",
        "mutual, ensemble",
        "mutual, mean",
    ]
    data = tfkd.data.load("digits", batch_size=100, data_dir=data_dir.removeprefix("--data_dir="))
    found = {}
    for name in ("student", "student2", "ensemble"):
        model = keras.models.load_model(folder / f"{name}.keras")
        hits = [np.argmax(model(x), -1) == y.numpy() for x, y in data.test]
        found[name] = np.mean(np.concatenate(hits))
    mean = (found["student"] + found["student2"]) / 2
    assert [row["accuracy"] for row in rows] == pytest.approx([*found.values(), mean])
    last = work_directory.history(folder)[-1]
    assert rows[3]["validation_accuracy"] == pytest.approx(last["val_mean_accuracy"])
    parameters = tfkd.models.create("resnet8", num_classes=10, input_shape=(8, 8, 1)).count_params()
    assert [row["parameters"] for row in rows] == [
        parameters,
        parameters,
        2 * parameters,
        parameters,
    ]
    assert (folder / "mutual.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder of the files that mistakes need."""
    folder = tmp_path_factory.mktemp("mistakes") / "files"
    folder.mkdir()
    mistakes.make_files(folder)
    return folder


@pytest.mark.parametrize(
    "mistake",
    [
        pytest.param(mistake, marks=pytest.mark.slow if mistake in mistakes.LATE else ())
        for mistake in mistakes.MISTAKES
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(mistake, files, tmp_path, data_dir, capsys):
    before = {path: path.stat().st_mtime_ns for path in files.rglob("*")}
    workdir = tmp_path / "run"
    _, message = mistakes.MISTAKES[mistake]
    arguments = mistakes.arguments(
        mistake, files, workdir=workdir, data_dir=data_dir.removeprefix("--data_dir=")
    )
    line = refused(capsys, train.train, *arguments)
    assert re.search(message, line), line
    assert not workdir.exists()
    assert before == {path: path.stat().st_mtime_ns for path in files.rglob("*")}


def test_another_config_is_refused(finished, data_dir, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    changed = [*SMALL, "--config.epochs=1", data_dir, f"--workdir={finished}"]
    line = refused(capsys, train.train, *changed)
    assert "run of another config (epochs 2 there, 1 now)" in line
    line = refused(
        capsys, train.train, *SMALL, data_dir, f"--workdir={finished}", "--precision=mixed_bfloat16"
    )
    assert "precision 'float32' there, 'mixed_bfloat16' now" in line
    assert before == {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    "values, distiller, reason",
    [
        ({"schedule.name": "constant"}, "kd", None),
        ({"schedule.milestones": ()}, "kd", None),
        ({"schedule.name": "steps"}, "kd", "its learning rate (schedule 'steps') is planned"),
        ({"schedule.name": "cosine"}, "kd", "its learning rate (schedule 'cosine') is planned"),
        ({"schedule.name": "constant", "schedule.warmup": 0.5}, "kd", "its learning rate"),
        ({"schedule.name": "constant"}, "iakd", "method 'iakd' plans over all epochs"),
    ],
)
def test_a_run_is_made_longer_where_its_first_epochs_are_the_same(
    tmp_path, values, distiller, reason
):
    config = tfkd.config.default_config(distiller, "resnet14", "resnet8")
    config.update_from_flattened_dict({**values, "epochs": 4})
    (tmp_path / "config.json").write_text(guard.as_json(config))
    (tmp_path / "student.keras").write_text("as it is")
    before = copy.deepcopy(config)
    config.epochs = 6
    assert longer.shorter(config, tmp_path) == before
    config.data.batch_size = 8
    assert longer.shorter(config, tmp_path) is None
    config.data.batch_size = before.data.batch_size
    data = types.SimpleNamespace(steps_per_epoch=3)
    kind = tfkd.distillers.available().get(distiller, tfkd.KnowledgeDistiller)
    made = kind(*(tfkd.models.create(name, 10, (8, 8, 1)) for name in ("resnet8", "resnet14")))
    if reason is None:
        longer.go_on(before, config, data, made, tmp_path)
        assert guard.differences(config, tmp_path) == {}
        return
    message = re.escape(reason) + ".*--config.student.weights=.*student.keras"
    with pytest.raises(UsageError, match=message):
        longer.go_on(before, config, data, made, tmp_path)
    assert list(guard.differences(config, tmp_path)) == ["epochs"]


@pytest.mark.slow
def test_a_finished_run_with_more_epochs_ends_as_one_that_had_them(
    small, tmp_path, data_dir, monkeypatch, capsys
):
    """Also where it is interrupted on the way, and has a stage before."""
    flags_ = [*small, data_dir, "--config.schedule.name=constant", "--config.student.head_epochs=1"]
    call(train.train, *flags_, "--config.epochs=3", f"--workdir={tmp_path / 'whole'}")
    workdir = tmp_path / "run"
    call(train.train, *flags_, "--config.epochs=2", f"--workdir={workdir}")
    line = refused(capsys, train.train, *flags_[:-2], "--config.epochs=3", f"--workdir={workdir}")
    assert "run of another config" in line
    epoch_end = fitting.Progress.on_epoch_end

    def interrupt(self, epoch, logs=None):
        epoch_end(self, epoch, logs)
        raise KeyboardInterrupt

    summary = (workdir / "summary.json").read_text()
    arguments = [*flags_, "--config.epochs=3", f"--workdir={workdir}"]
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(fitting.Progress, "on_epoch_end", interrupt)
        call(train.train, *arguments)
    assert (workdir / "summary.json").read_text() == summary
    assert "resuming after epoch 2 of 3" in capsys.readouterr().out
    call(train.train, *arguments)
    printed = capsys.readouterr().out
    assert "resuming after epoch 3 of 3" in printed and "warning: Checkpoint" not in printed
    assert_same_run(tmp_path / "whole", workdir)
    call(train.train, *arguments)
    assert "complete" in capsys.readouterr().out


def test_options_that_are_younger_than_a_run_are_no_other_config(tmp_path):
    config = tfkd.config.default_config("kd", "resnet14", "resnet8")
    stored = json.loads(guard.as_json(config))
    del stored["optimizer"]["delta"], stored["profile"], stored["data"]["views"]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    guard.check_same_config(config, tmp_path)
    whole = guard.digest(config)
    with config.unlocked():
        del config.optimizer["delta"]
    assert guard.digest(config) == whole
    config.data.views = 4
    assert guard.digest(config) != whole
    with pytest.raises(UsageError, match=r"\(data.views None there, 4 now\)"):
        guard.check_same_config(config, tmp_path)


@pytest.fixture
def unfinished(finished, tmp_path):
    """A work directory of a run whose two epochs are done, and nothing that follows them."""
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    (workdir / "summary.json").unlink()
    return workdir


def damage(path):
    path.write_bytes(path.read_bytes()[:5000])


def test_the_checkpoint_before_stands_in_for_a_damaged_one(finished, unfinished, data_dir, capsys):
    damage(unfinished / "checkpoint.npz")
    call(train.train, *SMALL, data_dir, f"--workdir={unfinished}")
    printed = capsys.readouterr().out.splitlines()
    (warning,) = [line for line in printed if line.startswith("warning: Checkpoint ")]
    assert "checkpoint.npz is damaged" in warning
    assert warning.endswith("going on from checkpoint.previous.npz.")
    (resumed,) = [line for line in printed if line.startswith("resuming ")]
    assert "after epoch 1 of 2" in resumed
    assert_same_run(finished, unfinished)


def test_damaged_checkpoints_are_named_and_nothing_starts_again(unfinished, data_dir, capsys):
    names = ("checkpoint.npz", "checkpoint.previous.npz")
    for name in names:
        damage(unfinished / name)
    before = {path: path.stat().st_mtime_ns for path in unfinished.rglob("*")}
    line = refused(capsys, train.train, *SMALL, data_dir, f"--workdir={unfinished}")
    assert all(f"{name} is damaged" in line for name in names) and "move them away" in line
    assert before == {path: path.stat().st_mtime_ns for path in unfinished.rglob("*")}


@pytest.mark.slow
def test_a_checkpoint_of_another_run_is_skipped(finished, unfinished, data_dir, capsys):
    """Its models are alike: only what it says of its run tells it apart."""
    path = unfinished / "checkpoint.npz"
    with np.load(path) as archive:
        arrays = dict(archive)
    header = json.loads(arrays["header"].tobytes())
    header["run"] = header["run"][:-12] + "another"
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    np.savez(path, **arrays)
    call(train.train, *SMALL, data_dir, f"--workdir={unfinished}")
    assert "belongs to another run" in capsys.readouterr().out
    assert_same_run(finished, unfinished)


def test_a_damaged_summary_or_teacher_of_the_run_is_named(unfinished, data_dir, capsys):
    arguments = [*SMALL, data_dir, f"--workdir={unfinished}"]
    (unfinished / "summary.json").write_text("{")
    line = refused(capsys, train.train, *arguments)
    assert "summary.json is damaged: remove it" in line
    (unfinished / "summary.json").unlink()
    damage(unfinished / "teacher.keras")
    line = refused(capsys, train.train, *arguments)
    assert "teacher.keras cannot be read" in line and "remove it, and the same command" in line


@pytest.mark.slow
def test_a_run_does_not_need_the_given_teacher_once_it_has_begun(small, tmp_path, data_dir):
    teacher = tmp_path / "teacher.keras"
    shutil.copy(re.search("teacher=([^,]*)", small[0])[1], teacher)
    given = re.sub("teacher=[^,]*", f"teacher={teacher}", small[0])
    arguments = [given, *small[1:], data_dir, f"--workdir={tmp_path / 'run'}"]
    call(train.train, *arguments)
    (tmp_path / "run" / "summary.json").unlink()
    teacher.unlink()
    call(train.train, *arguments)
    assert (tmp_path / "run" / "summary.json").exists()


@pytest.fixture
def full_disk(tmp_path):
    """A directory that takes 16 MB; needs the right to mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_run_goes_on_later(
    finished, unfinished, full_disk, data_dir, capsys
):
    workdir = full_disk / "run"
    shutil.copytree(unfinished, workdir)
    (workdir / "checkpoint.npz").unlink()
    before = (workdir / "checkpoint.previous.npz").read_bytes()
    filling = full_disk / "filling"
    with contextlib.suppress(OSError), open(filling, "wb", buffering=0) as file:
        while file.write(b"0" * 4096):
            pass
    arguments = [*SMALL, data_dir, f"--workdir={workdir}"]
    line = refused(capsys, train.train, *arguments)
    assert f"{workdir}/" in line
    assert "could not be written (No space left on device): make room" in line
    assert (workdir / "checkpoint.previous.npz").read_bytes() == before
    assert not list(workdir.rglob("*.partial.*"))
    filling.unlink()
    call(train.train, *arguments)
    assert "resuming after epoch 1 of 2" in capsys.readouterr().out
    assert_same_run(finished, workdir)


def test_a_run_that_was_interrupted_and_diverged_resumes_to_the_same_bits(
    finished, small, tmp_path, data_dir, monkeypatch, capsys
):
    """Divergence tells part, step and the last good checkpoint; nothing of it is saved."""
    workdir = tmp_path / "run"
    arguments = [*small, data_dir, f"--workdir={workdir}"]
    interrupted(capsys, arguments, "student", 1)
    epoch_begin = fitting.Progress.on_epoch_begin

    def poison(self, epoch, logs=None):
        epoch_begin(self, epoch, logs)
        bias = self.model.student.trainable_variables[-1]
        bias.assign(np.full(bias.shape, np.nan))

    with monkeypatch.context() as patch:
        patch.setattr(fitting.Progress, "on_epoch_begin", poison)
        line = refused(capsys, train.train, *arguments)
    assert "student_loss and kd_loss became NaN or infinite in epoch 2, step 1 of 2" in line
    path = workdir / "checkpoint.npz"
    assert line.endswith(f"The last good checkpoint is {path}, of epoch 1.")
    call(train.train, *arguments)
    assert "resuming after epoch 1 of 2" in capsys.readouterr().out
    assert_same_run(finished, workdir)


@pytest.mark.slow
def test_weights_that_diverge_in_the_last_step_are_not_saved(small, tmp_path, data_dir, capsys):
    """The loss is of the step before: it is still finite."""
    rate = ["--config.optimizer.learning_rate=1e38", "--config.optimizer.weight_decay=1e10"]
    rate.append("--config.data.train_examples=32")
    line = refused(capsys, train.train, *small, *rate, data_dir, f"--workdir={tmp_path / 'run'}")
    assert "weights of the student became NaN or infinite in epoch 1, step 1 of 1" in line
    assert line.endswith("run has no checkpoint yet.")
    assert not list((tmp_path / "run").glob("checkpoint*"))


def test_no_checkpoint_has_weights_that_are_not_finite(tmp_path):
    student = tfkd.models.create("resnet8", 10, (8, 8, 1))
    distiller = tfkd.KnowledgeDistiller(student)
    distiller.compile("sgd")
    data = types.SimpleNamespace(steps_per_epoch=1, batch_size=8, start_epoch=lambda epoch: None)
    progress = fitting.Progress(data, tmp_path, "run")
    progress.set_model(distiller)
    progress.set_params({"epochs": 1})
    progress.on_epoch_begin(0)
    bias = student.trainable_variables[-1]
    bias.assign(np.full(bias.shape, np.inf))
    message = f"{bias.path} has NaN or infinite values after the last step of epoch 1"
    with pytest.raises(UsageError, match=message):
        progress.on_epoch_end(0, {"loss": 1.0})
    assert not list(tmp_path.iterdir())


def test_without_a_workdir(capsys):
    assert "--workdir=DIR is missing" in refused(capsys, train.train, *SMALL)


def test_a_comparison_finds_a_mistake_before_it_trains(tmp_path, small, data_dir, capsys):
    arguments = [*small, data_dir, f"--workdir={tmp_path / 'run'}"]
    methods = "--methods=alone,iakd:start=2.0"
    line = refused(capsys, compare.main, *arguments, methods)
    assert "start must be a number between 0 and 1; received 2.0" in line
    assert not (tmp_path / "run").exists()


def test_a_comparison_of_nothing(tmp_path, data_dir, capsys):
    workdir = f"--workdir={tmp_path / 'run'}"
    assert "names none" in refused(capsys, compare.main, *SMALL, data_dir, workdir, "--methods=")


FROM_BOTH = "(('stage2','teacher1/stage2'),('stage2','teacher2/stage2'))"


@pytest.mark.slow
@pytest.mark.parametrize(
    "method, classes, spots, shown",
    [
        ("kd:kd.spots=teachers:kd.weight=0.45", 10, None, "logits 10 -> teacher2 10"),
        ("kd", 10, "kd.spots=teachers", "logits 10 -> teacher2 10"),
        ("fitnet", 7, f"fitnet.spots={FROM_BOTH}", "stage2 4x4x32 -> teacher2/stage2 8x8x32"),
    ],
)
def test_where_several_teachers_teach(tmp_path, data_dir, capsys, method, classes, spots, shown):
    """Also those of other classes than the student's."""
    for name, shape in (("one", (8, 8, 1)), ("two", (16, 16, 3))):
        tfkd.models.create("resnet8", classes, shape).save(tmp_path / f"{name}.keras")
    teachers = f"teacher={tmp_path}/one.keras+{tmp_path}/two.keras"
    flags_ = [SMALL[0].replace("teacher=resnet14", teachers) + f",method={method}", *SMALL[1:]]
    flags_ += [f"--config.method.losses.{spots}"] if spots else []
    call(check.check, *flags_, data_dir, needs_workdir=False)
    assert shown in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_several_given_teachers(finished, data_dir, tmp_path, capsys):
    """Of other sizes and channels; saved as one model; a missing file is reported at once."""
    tfkd.models.create("resnet8", 10, (16, 16, 3), seed=5).save(tmp_path / "large.keras")
    files = f"teacher={finished}/teacher.keras+{tmp_path}/large.keras"
    given = [SMALL[0].replace("teacher=resnet14", files) + ",method=aekd", *SMALL[1:]]
    given += [data_dir, "--config.teacher.cache=True", "--config.data.augment=()"]
    given += ["--config.teacher.std=(0.5,)"]
    call(train.train, *given, f"--workdir={tmp_path / 'run'}")
    teacher = keras.models.load_model(tmp_path / "run" / "teacher.keras")
    assert tfkd.taps.at_spots(teacher, "teachers") == ["teacher1", "teacher2"]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["config"]["teacher"]["path"] == files.removeprefix("teacher=")
    # Their deviation is inside of that model, and not applied again.
    folder = data_dir.partition("=")[2]
    found, _ = evaluation.evaluate(tmp_path / "run", model="teacher", data_dir=folder)
    assert found["teacher"]["accuracy"] == summary["teacher"]["test_accuracy"]
    call(train.train, *given, f"--workdir={tmp_path / 'run'}")  # It is complete.
    wrong = [given[0].replace("large", "lost"), *given[1:]]
    line = refused(capsys, train.train, *wrong, f"--workdir={tmp_path / 'other'}")
    assert "lost.keras does not exist" in line and not (tmp_path / "other").exists()
