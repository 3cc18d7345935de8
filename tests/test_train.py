"""Runs as users run them: flags in, artefacts out, mistakes answered by one line."""

import csv
import json
import pathlib
import re
import shutil
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
from absl import flags

import tfkd
from tfkd import command_line, compare, experiment, train

ROOT = pathlib.Path(__file__).parents[1]
SMALL = [
    f"--config={ROOT}/configs/digits.py:teacher=resnet14,student=resnet8,runlocal",
    "--config.data.train_examples=64",
    "--config.data.batch_size=32",
]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return f"--data_dir={tmp_path_factory.mktemp('tfds')}"


def call(main, *arguments):
    """Runs a command in this process, as often as wanted."""
    flags.FLAGS.unparse_flags()
    for name in [name for name in flags.FLAGS if name.startswith("config.")]:
        delattr(flags.FLAGS, name)
    with pytest.MonkeyPatch.context() as patch:
        # ml_collections looks there for overrides of the config.
        patch.setattr(sys, "argv", ["command", *map(str, arguments)])
        command_line.main(main)


def refused(capsys, main, *arguments):
    """Runs a command that must fail; returns the one line that it prints."""
    with pytest.raises(SystemExit) as stop:
        call(main, *arguments)
    printed = capsys.readouterr()
    assert stop.value.code == command_line.MISTAKE
    lines = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in printed.err
    return lines[0]


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


def assert_same_run(one, other):
    names = [path.stem for path in one.glob("*.keras")]
    assert {"teacher", "student"} <= set(names)
    for name in names:
        for a, b in zip(weights(one, name), weights(other, name), strict=True):
            np.testing.assert_array_equal(a, b)
    assert (one / "metrics.csv").read_text() == (other / "metrics.csv").read_text()
    checks = [json.loads((run / "summary.json").read_text())["check"] for run in (one, other)]
    assert checks[0] == checks[1]


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


@pytest.mark.parametrize("stage, epoch", [("teacher", 1), ("student", 0), ("student", 1)])
def test_an_interrupted_run_resumes_to_the_same_bits(
    stage, epoch, finished, small, tmp_path, data_dir, monkeypatch, capsys
):
    batch_end = experiment._Progress.on_train_batch_end

    def interrupt(self, batch, logs=None):
        batch_end(self, batch, logs)
        here = "teacher" if self.folder.name == "teacher" else "student"
        if here == stage and len(self.history) == epoch:
            raise KeyboardInterrupt

    workdir = tmp_path / "run"
    flags_ = SMALL if stage == "teacher" else small
    arguments = [*flags_, data_dir, f"--workdir={workdir}"]
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(experiment._Progress, "on_train_batch_end", interrupt)
        call(train.train, *arguments)
    assert stop.value.code == command_line.INTERRUPTED
    assert "the same command resumes" in capsys.readouterr().err
    # What a resumed process draws before must not matter.
    keras.utils.set_random_seed(99)
    call(train.train, *arguments)
    assert ("resuming after epoch 1 of 2" in capsys.readouterr().out) == (epoch == 1)
    assert_same_run(finished, workdir)


@pytest.mark.parametrize(
    "method, stage", [("ft", "preparation_ft"), ("ft", "run"), ("crd", "run"), ("ackd", "run")]
)
def test_methods_with_a_state_of_their_own_resume_too(
    method, stage, small, tmp_path, data_dir, monkeypatch
):
    config = [small[0].replace("runlocal", f"method={method},runlocal"), *small[1:], data_dir]
    config += ["--config.method.preparation_epochs=2"] if method == "ft" else []
    call(train.train, *config, f"--workdir={tmp_path / 'whole'}")
    epoch_begin = experiment._Progress.on_epoch_begin

    def interrupt(self, epoch, logs=None):
        epoch_begin(self, epoch, logs)
        if self.folder.name == stage and epoch == 1:
            raise KeyboardInterrupt

    arguments = [*config, f"--workdir={tmp_path / 'run'}"]
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(experiment._Progress, "on_epoch_begin", interrupt)
        call(train.train, *arguments)
    call(train.train, *arguments)
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_ctrl_c_in_a_process_of_its_own(tmp_path, data_dir):
    def command(name):
        config = SMALL[0].replace("runlocal", "method=alone,runlocal")
        # Long enough that a busy machine does not finish it before the signal arrives.
        flags_ = [config, *SMALL[1:], "--config.epochs=5", data_dir, f"--workdir={tmp_path / name}"]
        return [sys.executable, "-m", "tfkd.train", *flags_]

    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command("interrupted"), **pipes)
    for line in process.stdout:
        if line.startswith("Epoch 2/5"):
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


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_precisions_train(tmp_path, small, data_dir, precision):
    call(train.train, *small, data_dir, f"--workdir={tmp_path}", f"--precision={precision}")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["student"]["parameters"] > 0
    history = experiment.history(tmp_path)
    assert all(np.isfinite(value) for row in history for value in row.values())


def test_mixing_labels_trains(tmp_path, small, data_dir):
    mixing = ["--config.data.mixup=0.2", "--config.data.cutmix=1.0"]
    call(train.train, *small, data_dir, f"--workdir={tmp_path}", *mixing)
    assert "student_loss" in experiment.history(tmp_path)[0]


def test_without_validation(tmp_path, small, data_dir):
    none = ["--config.data.validation=0.0", "--config.epochs=1"]
    call(train.train, *small, data_dir, f"--workdir={tmp_path}", *none)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["student"]["validation_accuracy"] is None


def test_a_given_teacher_is_used_and_not_trained(finished, small, tmp_path, data_dir):
    call(train.train, *small, data_dir, f"--workdir={tmp_path}")
    assert not (tmp_path / "teacher").exists()
    for name in ("teacher", "student"):
        for a, b in zip(weights(tmp_path, name), weights(finished, name), strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_given_teacher_may_take_other_images(tmp_path, data_dir, capsys):
    """It is checked, and its accuracy measured, on its own images."""
    teacher = tfkd.models.create("resnet8", num_classes=10, input_shape=(16, 16, 3), seed=1)
    teacher.save(tmp_path / "teacher.keras")
    path = f"teacher={tmp_path / 'teacher.keras'}"
    given = [SMALL[0].replace("teacher=resnet14", path), *SMALL[1:], "--config.epochs=1", data_dir]
    line = refused(capsys, train.train, *given, f"--workdir={tmp_path / 'refused'}")
    assert "teacher_preprocessing" in line
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


def test_the_check_can_be_left_out(tmp_path, small, data_dir, capsys):
    call(train.train, *small, data_dir, f"--workdir={tmp_path}", "--config.check=False")
    assert "check" not in json.loads((tmp_path / "summary.json").read_text())
    assert "check on" not in capsys.readouterr().out


def test_select_best_saves_the_epoch_of_the_highest_validation_accuracy(tmp_path, small, data_dir):
    more = ["--config.epochs=5", "--config.select=best", "--config.optimizer.learning_rate=0.5"]
    call(train.train, *small, data_dir, f"--workdir={tmp_path}", *more)
    summary = json.loads((tmp_path / "summary.json").read_text())["student"]
    accuracies = [row["val_accuracy"] for row in experiment.history(tmp_path)]
    assert summary["validation_accuracy"] == max(accuracies)
    assert accuracies[summary["epoch"] - 1] == max(accuracies)
    assert summary["last"]["epoch"] == 5


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
    logs = experiment.history(folder)[fused["epoch"] - 1]
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


CONFIG = SMALL[0]
MISTAKES = {
    "no such flag": ([CONFIG, "--epochs=3"], "set as --config.epochs="),
    "alone and more": ([f"{CONFIG},method=kd+alone"], "Unknown method 'alone': .* one of ab, "),
    "no config": (["--config="], "config"),
    "no such config": (["--config=configs/none.py"], "No such file .*none.py"),
    "config argument": ([f"{CONFIG},metod=kd"], "Unknown config argument 'metod'"),
    "method": ([f"{CONFIG},method=kdd"], "Unknown method 'kdd': it must be one of alone, .*kd"),
    "argument of a method": (
        [f"{CONFIG},method=ackd:atention=logit"],
        "Unknown argument of method 'ackd' 'atention': .*attention",
    ),
    "losses of a method": ([f"{CONFIG},method=ackd+at"], "Method 'ackd' takes no losses"),
    "optimizer of a method": (
        [f"{CONFIG},method=ackd", "--config.method.optimizers.discriminator_optimizer.name=adm"],
        "Optimizer 'adm': ",
    ),
    "student": ([f"{CONFIG},student=resnet7"], "Unknown model 'resnet7'.*resnet8"),
    "teacher": ([f"{CONFIG},teacher=resnet7"], "Unknown model 'resnet7'"),
    "teacher file": ([f"{CONFIG},teacher=none.keras"], "Teacher none.keras does not exist"),
    "data set": ([CONFIG, "--config.data.name=mnistt"], "Unknown data set 'mnistt'.*digits"),
    "key": ([CONFIG, "--config.epohcs=3"], "epochs.*instead of.*epohcs"),
    "type": ([CONFIG, "--config.epochs=three"], "config.epochs=three"),
    "epochs": ([CONFIG, "--config.epochs=0"], "epochs must be at least 1; received 0"),
    "rate": ([CONFIG, "--config.optimizer.learning_rate=-1.0"], "learning_rate must be above 0"),
    "momentum": ([CONFIG, "--config.optimizer.momentum=1.5"], "momentum must be from 0 to 1"),
    "milestones": ([CONFIG, "--config.schedule.milestones=(150,)"], "increasing fractions"),
    "schedule": ([CONFIG, "--config.schedule.name=linear"], "Unknown learning-rate schedule"),
    "batch": ([CONFIG, "--config.data.batch_size=4096"], "batch_size=4096 is more than"),
    "augment": ([CONFIG, "--config.data.augment=('blur',)"], "blur.*crop"),
    "validation": ([CONFIG, "--config.data.validation=1.5"], "validation"),
    "teacher images": (
        [CONFIG, "--config.teacher.image_size=16"],
        "teacher.image_size describes the images of a given teacher",
    ),
    "select": ([CONFIG, "--config.select=first"], "select must be last or best"),
    "temperature": ([CONFIG, "--config.method.losses.kd.temperature=0.0"], "temperature must be"),
    "tap": (
        [f"{CONFIG},method=at", "--config.method.losses.at.spots=(('stage9','stage1'),)"],
        "no tap 'stage9'; it has stem, stage1, stage2, stage3, pooled, logits",
    ),
    "spots": (
        [f"{CONFIG},method=at", "--config.method.losses.at.spots=('stage1',)"],
        "pairs",
    ),
    "seed": ([CONFIG, "--config.seed=-1"], "seed must be at least 0"),
    "strategy": ([CONFIG, "--strategy=horovod"], "Unknown strategy 'horovod': .*one_device"),
    "parameter server": (
        [CONFIG, "--strategy=parameter_server"],
        "'parameter_server' is not supported: Keras 3 does not train under parameter servers",
    ),
    "workers": ([CONFIG, "--strategy=multi_worker"], "needs the workers .* TF_CONFIG"),
    "accumulation": (
        [CONFIG, "--config.accumulation_steps=0"],
        "accumulation_steps must be at least 1; received 0",
    ),
    "replicas": ([CONFIG, "--replicas=0"], "replicas=0"),
    "precision": ([CONFIG, "--precision=float8"], "precision=float8.*mixed_bfloat16"),
    "flag": ([CONFIG, "--wrokdir=x"], "Unknown command line flag 'wrokdir'"),
    "argument": ([CONFIG, "digits"], "Unexpected argument 'digits'"),
}


@pytest.mark.parametrize("mistake", list(MISTAKES))
def test_a_mistake_is_one_line_and_leaves_nothing(mistake, tmp_path, data_dir, capsys):
    arguments, message = MISTAKES[mistake]
    workdir = tmp_path / "run"
    line = refused(capsys, train.train, *arguments, data_dir, f"--workdir={workdir}")
    assert re.search(message, line), line
    assert not workdir.exists()


def test_another_config_is_refused(finished, data_dir, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    changed = [*SMALL, "--config.epochs=3", data_dir, f"--workdir={finished}"]
    line = refused(capsys, train.train, *changed)
    assert "run of another config (epochs 2 there, 3 now)" in line
    line = refused(
        capsys, train.train, *SMALL, data_dir, f"--workdir={finished}", "--precision=mixed_bfloat16"
    )
    assert "precision 'float32' there, 'mixed_bfloat16' now" in line
    assert before == {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()}


def test_a_damaged_checkpoint_is_named(finished, data_dir, capsys, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    (workdir / "summary.json").unlink()
    checkpoint = workdir / "checkpoint.npz"
    checkpoint.write_bytes(checkpoint.read_bytes()[:5000])
    line = refused(capsys, train.train, *SMALL, data_dir, f"--workdir={workdir}")
    assert "checkpoint.npz is damaged" in line and "move it away" in line
    assert checkpoint.stat().st_size == 5000


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not an archive"])
def test_a_damaged_teacher_is_named(content, tmp_path, data_dir, capsys):
    teacher = tmp_path / "teacher.keras"
    teacher.write_bytes(content)
    config = SMALL[0].replace("teacher=resnet14", f"teacher={teacher}")
    line = refused(capsys, train.train, config, data_dir, f"--workdir={tmp_path / 'run'}")
    assert f"Teacher {teacher} cannot be read as a Keras model" in line


def test_a_teacher_of_other_classes_or_with_a_softmax(tmp_path, data_dir, capsys):
    for name, classes, end in (("few", 7, None), ("soft", 10, "softmax")):
        model = tfkd.models.create("resnet8", num_classes=classes, input_shape=(8, 8, 1))
        if end:
            outputs = keras.layers.Activation(end)(model.output)
            model = keras.Model(model.input, outputs)
        model.save(tmp_path / f"{name}.keras")
    for name, message in (
        ("few", "has 7 classes, and data set 'digits' 10"),
        ("soft", "needs logits"),
    ):
        config = SMALL[0].replace("teacher=resnet14", f"teacher={tmp_path / name}.keras")
        line = refused(capsys, train.train, config, data_dir, f"--workdir={tmp_path / 'run'}")
        assert message in line


def test_without_a_workdir(capsys):
    assert "--workdir=DIR is missing" in refused(capsys, train.train, *SMALL)


def test_files_of_something_else_are_left_alone(tmp_path, data_dir, capsys):
    (tmp_path / "student.keras").write_text("precious")
    line = refused(capsys, train.train, *SMALL, data_dir, f"--workdir={tmp_path}")
    assert "holds student.keras, but of no run" in line
    assert (tmp_path / "student.keras").read_text() == "precious"


def test_a_comparison_finds_a_mistake_before_it_trains(tmp_path, small, data_dir, capsys):
    arguments = [*small, data_dir, f"--workdir={tmp_path / 'run'}"]
    methods = "--methods=alone,iakd:start=2.0"
    line = refused(capsys, compare.main, *arguments, methods)
    assert "start must be a number between 0 and 1; received 2.0" in line
    assert not (tmp_path / "run").exists()


def test_a_comparison_of_nothing(tmp_path, data_dir, capsys):
    workdir = f"--workdir={tmp_path / 'run'}"
    assert "names none" in refused(capsys, compare.main, *SMALL, data_dir, workdir, "--methods=")


def test_a_workdir_that_cannot_be_written(tmp_path, data_dir, capsys):
    file = tmp_path / "file"
    file.write_text("in the way")
    line = refused(capsys, train.train, *SMALL, data_dir, f"--workdir={file}")
    assert str(file) in line and file.read_text() == "in the way"
