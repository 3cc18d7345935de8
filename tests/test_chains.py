"""Chains: which run teaches which, and runs that go on where they stopped."""

import json
import pathlib
import shutil

import keras
import numpy as np
import pytest
from commands import ROOT, call, refused

import tfkd
from tfkd import chain, command_line, train
from tfkd.config import default_config
from tfkd.errors import UsageError
from tfkd.report.runs import find
from tfkd.runs import assemble, fitting
from tfkd.runs.chains import stages_of

SMALL = [
    f"--config={ROOT}/configs/digits.py:runlocal",
    "--config.data.train_examples=64",
    "--config.data.batch_size=32",
]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return f"--data_dir={tmp_path_factory.mktemp('tfds')}"


def config(method="kd"):
    made = default_config(method, "resnet20", "resnet8")
    made.teacher.epochs, made.epochs, made.teacher.learning_rate = 9, 10, 0.2
    return made


def stages(models, protocol="takd", method="kd", **arguments):
    made = stages_of(config(method), pathlib.Path("runs"), models, protocol, **arguments)
    assert [stage.folder.name for stage in made] == [
        f"stage{position}-{stage.config.student.model}" for position, stage in enumerate(made, 1)
    ]
    return made


def teachers(stage):
    return stage.config.teacher.path.replace("/student", "").replace("runs/", "")


def test_each_model_teaches_the_next():
    first, second, third = stages(["resnet32", "resnet14", "resnet14"])
    assert first.config.method.name == "alone" and not first.config.teacher.path
    assert first.config.epochs == 9 and first.config.optimizer.learning_rate == 0.2
    for stage, before in ((second, "stage1-resnet32"), (third, "stage2-resnet14")):
        assert teachers(stage) == f"{before}.keras"
        assert stage.config.method.name == "kd" and stage.config.epochs == 10
        assert not stage.config.student.weights
    # Generations of one kind begin apart.
    assert len({stage.config.seed for stage in (first, second, third)}) == 3
    assert third.config.teacher.model == "resnet14" and third.told == ", taught by 2"


def test_all_models_before_teach():
    first, second, third = stages(["resnet32", "resnet14", "resnet8"], "dgkd", "dgkd")
    assert teachers(second) == "stage1-resnet32.keras"
    assert teachers(third) == "stage1-resnet32.keras+stage2-resnet14.keras"
    assert third.kinds == ("resnet32", "resnet14") and third.told == ", taught by 1, 2"
    # One teacher has no places of several.
    assert second.config.method.losses.dgkd.spots == "logits"
    assert third.config.method.losses.dgkd.spots is None
    # As the config.json of the stage is read again.
    again = default_config(second.config.method.name, "resnet32", "resnet14")
    assert again.method.losses.dgkd.spots == "logits"


def test_a_given_model_begins_the_chain():
    second, third = stages_of(
        config(), pathlib.Path("runs"), ["my/teacher.keras", "resnet14", "resnet8"], "dgkd"
    )
    assert (second.number, second.folder.name) == (2, "stage2-resnet14")
    assert second.config.teacher.path == "my/teacher.keras"
    assert teachers(third) == "my/teacher.keras+stage2-resnet14.keras"
    own = config()
    own.teacher.image_size = 16
    second, third = stages_of(own, pathlib.Path("runs"), ["t.keras", "resnet14", "resnet8"])
    assert (second.config.teacher.image_size, third.config.teacher.image_size) == (16, None)
    with pytest.raises(UsageError, match="teacher.image_size holds for the given teacher alone"):
        stages_of(own, pathlib.Path("runs"), ["t.keras", "resnet14", "resnet8"], "dgkd")


def test_a_teacher_teaches_from_moments_of_its_training():
    first, *students = stages(["resnet32", "resnet8"], "rco", anchors=4)
    assert first.config.keep_every == 2
    assert [stage.config.epochs for stage in students] == [3, 3, 2, 2]
    epochs = [f"stage1-resnet32-epoch00{epoch}.keras" for epoch in (2, 4, 6)]
    assert [teachers(stage) for stage in students] == [*epochs, "stage1-resnet32.keras"]
    begun = [stage.config.student.weights for stage in students]
    assert begun == [None, *(str(stage.model) for stage in students[:-1])]
    assert students[-1].told == ", taught by 1 after epoch 9"


def test_a_teacher_may_be_stopped_early():
    first, second = stages(["resnet32", "resnet8"], "eskd", stop=0.5)
    assert (first.config.epochs, second.config.epochs) == (4, 10)


@pytest.mark.parametrize(
    "models, protocol, arguments, message",
    [
        (["resnet20"], "takd", {}, "at least two models, .*--chain=resnet56,resnet20"),
        (["resnet20", "resnet8"], "tkad", {}, "Unknown --protocol 'tkad'.*did you mean 'takd'"),
        (["resnet20", "resnet8"], "takd", {"method": "alone"}, "'alone' has no teacher"),
        (["resnet20", "resnet8"], "takd", {"method": "mutual"}, "'mutual' has no teacher"),
        (["resnet20", "resnet8"], "eskd", {"stop": 0.0}, "--stop must be above 0 and at most 1"),
        (["resnet20", "resnet8"], "rco", {"anchors": 0}, "--anchors must be a whole number"),
        (["resnet20", "resnet8"], "rco", {"anchors": 10}, "--anchors=10: .* there are 9"),
        (["resnet20", "resnet14", "resnet8"], "rco", {}, "rco takes a teacher and a student"),
        (["t.keras", "resnet8"], "rco", {}, "rco follows the teacher's training: begin"),
        (["t.keras", "resnet8"], "eskd", {}, "eskd follows the teacher's training: begin"),
    ],
)
def test_mistakes(models, protocol, arguments, message):
    with pytest.raises(UsageError, match=message):
        stages(models, protocol, **arguments)


@pytest.mark.parametrize(
    "models, method, message",
    [
        ("resnet14,resnet9", "kd", "Unknown model 'resnet9'"),
        ("resnet8,vgg8", "at", "pairs the stages of both models, and the student has 4"),
        ("lost.keras,resnet8", "kd", "Teacher lost.keras does not exist"),
    ],
)
def test_a_mistake_in_the_last_stage_shows_before_the_first(
    models, method, message, tmp_path, data_dir, capsys
):
    given = [SMALL[0] + f",method={method}", *SMALL[1:], data_dir, f"--chain={models}"]
    line = refused(capsys, chain.main, *given, f"--workdir={tmp_path / 'run'}")
    assert message in line
    assert not (tmp_path / "run").exists()


def weights(folder):
    return keras.models.load_model(folder / "student.keras").get_weights()


@pytest.mark.slow
def test_a_chain_interrupted_in_its_second_stage_ends_with_the_same_weights(
    tmp_path, data_dir, monkeypatch, capsys
):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    models = ["resnet14", "resnet8", "resnet8"]
    flags = [*SMALL, data_dir, f"--chain={','.join(models)}"]
    call(chain.main, *flags, f"--workdir={whole}")
    names = [f"stage{number}-{model}" for number, model in enumerate(models, 1)]
    rows = json.loads((whole / "table.json").read_text())
    summaries = [json.loads((whole / name / "summary.json").read_text()) for name in names]
    assert [row["accuracy"] for row in rows] == [
        summary["student"]["test_accuracy"] for summary in summaries
    ]
    roles = ["1", "2, taught by 1", "3, taught by 2"]
    assert [row["role"] for row in rows] == roles
    assert [(row["model"], row["method"]) for row in rows] == list(
        zip(models, ["alone", "kd", "kd"])
    )
    assert summaries[2]["teacher"]["test_accuracy"] == rows[1]["accuracy"]
    assert "3, taught by 2" in (whole / "table.md").read_text()
    assert (whole / "curves.png").read_bytes().startswith(b"\x89PNG")
    # As a report finds them.
    runs, left_out = find([whole])
    assert [run.path.name for run in runs] == names and not left_out
    assert runs[2].own_teacher()[0] == whole / names[1]

    batch_end = fitting.Progress.on_train_batch_end

    def interrupt(self, batch, logs=None):
        batch_end(self, batch, logs)
        if self.folder.name == names[1] and len(self.history) == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(fitting.Progress, "on_train_batch_end", interrupt)
        call(chain.main, *flags, f"--workdir={resumed}")
    assert stop.value.code == command_line.INTERRUPTED
    capsys.readouterr()
    keras.utils.set_random_seed(99)
    call(chain.main, *flags, f"--workdir={resumed}")
    printed = capsys.readouterr().out
    assert f"{resumed / names[0]} holds this run, complete." in printed
    assert "resuming after epoch 1 of 2" in printed
    for name in names:
        for a, b in zip(weights(whole / name), weights(resumed / name), strict=True):
            np.testing.assert_array_equal(a, b)
        assert (whole / name / "metrics.csv").read_text() == (
            resumed / name / "metrics.csv"
        ).read_text()
    # Another chain in the same directory is refused, with all that is there untouched.
    line = refused(capsys, chain.main, *flags, "--protocol=dgkd", f"--workdir={resumed}")
    assert "stage3-resnet8 holds a run of another config" in line


@pytest.mark.slow
def test_a_chain_of_several_teachers_goes_on_from_a_shorter_one(tmp_path, data_dir):
    config_, *more = SMALL
    flags = [f"{config_},method=dgkd", *more, data_dir, "--protocol=dgkd", f"--workdir={tmp_path}"]
    call(chain.main, *flags, "--chain=resnet14,resnet8")
    before = (tmp_path / "stage2-resnet8" / "student.keras").stat().st_mtime_ns
    call(chain.main, *flags, "--chain=resnet14,resnet8,resnet8")
    assert (tmp_path / "stage2-resnet8" / "student.keras").stat().st_mtime_ns == before
    teacher = keras.models.load_model(tmp_path / "stage3-resnet8" / "teacher.keras")
    assert tfkd.taps.at_spots(teacher, "teachers") == ["teacher1", "teacher2"]


@pytest.mark.slow
def test_a_given_teacher_has_its_row(tmp_path, data_dir):
    teacher = tfkd.models.create("resnet14", 10, (8, 8, 1), seed=3)
    teacher.save(tmp_path / "teacher.keras")
    flags = [*SMALL, data_dir, f"--chain={tmp_path / 'teacher.keras'},resnet8"]
    call(chain.main, *flags, "--config.epochs=1", f"--workdir={tmp_path / 'run'}")
    summary = json.loads((tmp_path / "run/stage2-resnet8/summary.json").read_text())
    first, second = json.loads((tmp_path / "run/table.json").read_text())
    assert (first["role"], first["method"]) == ("1", "given")
    assert first["accuracy"] == summary["teacher"]["test_accuracy"]
    assert first["parameters"] == teacher.count_params()
    assert (second["role"], second["model"]) == ("2, taught by 1", "resnet8")


@pytest.mark.slow
def test_anchors_are_the_teacher_on_its_way(tmp_path, data_dir):
    flags = [*SMALL, data_dir, "--chain=resnet14,resnet8", "--protocol=rco", "--anchors=2"]
    call(chain.main, *flags, f"--workdir={tmp_path / 'chain'}")
    first, second, third = sorted((tmp_path / "chain").glob("stage*"))
    kept = keras.models.load_model(first / "student-epoch001.keras").get_weights()
    assert any(not np.array_equal(a, b) for a, b in zip(kept, weights(first)))
    for folder, expected in ((second, kept), (third, weights(first))):
        teacher = keras.models.load_model(folder / "teacher.keras").get_weights()
        for a, b in zip(teacher, expected, strict=True):
            np.testing.assert_array_equal(a, b)
    # The last stage by hand: it begins with the student of the one before.
    again = tmp_path / "again"
    shutil.copy(third / "config.json", tmp_path / "config.json")
    call(train.train, f"--config={tmp_path / 'config.json'}", data_dir, f"--workdir={again}")
    for a, b in zip(weights(third), weights(again), strict=True):
        np.testing.assert_array_equal(a, b)
    rate = [f"--config={tmp_path / 'config.json'}", "--config.optimizer.learning_rate=1e-12"]
    rate.append("--config.optimizer.weight_decay=0.0")
    call(train.train, *rate, data_dir, f"--workdir={tmp_path / 'still'}")
    still = keras.models.load_model(tmp_path / "still" / "student.keras").trainable_variables
    begun = keras.models.load_model(second / "student.keras").trainable_variables
    for a, b in zip(still, begun, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_student_begins_with_the_weights_of_its_own_kind_alone(tmp_path):
    other = tfkd.models.create("resnet14", 10, (8, 8, 1))
    other.save(tmp_path / "other.keras")
    student = tfkd.models.create("resnet8", 10, (8, 8, 1))
    for name, message in (("lost", "there is no such file"), ("other", "is no 'resnet8' of these")):
        with pytest.raises(UsageError, match=message):
            assemble.begin_with(student, str(tmp_path / f"{name}.keras"))
