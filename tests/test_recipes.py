"""What a config says of optimizer, labels, the length of training, and its stages."""

import json
import types

import keras
import numpy as np
import pytest
import tiny
from commands import SMALL, call

import tfkd
from tfkd import config, optimizers, train
from tfkd.errors import UsageError
from tfkd.runs import assemble, execute, fitting, guard, work_directory


def data_of(one_hot=False):
    return types.SimpleNamespace(steps_per_epoch=10, one_hot=one_hot)


def compiled(smoothing=0.0, **optimizer):
    made = config.default_config("alone", "", "resnet8")
    made.optimizer.update(optimizer)
    distiller = tfkd.KnowledgeDistiller(tiny.model())
    assemble.compile_distiller(distiller, made, data_of(smoothing > 0), 3, 0.01, smoothing)
    return distiller


@pytest.mark.parametrize(
    "values, kind",
    [
        ({"name": "sgd", "global_clipnorm": 2.0}, optimizers.SGD),
        ({"name": "dot"}, optimizers.DOT),
        ({"name": "adamw", "weight_decay": 0.03, "global_clipnorm": 2.0}, keras.optimizers.AdamW),
    ],
)
def test_optimizers_of_configs(values, kind):
    optimizer = compiled(**values).optimizer
    assert type(optimizer) is kind
    assert optimizer.global_clipnorm == values.get("global_clipnorm")
    if values["name"] == "adamw":
        assert optimizer.weight_decay == 0.03
        x, y = tiny.data()
        distiller = compiled(**values)
        assert np.isfinite(distiller.train_on_batch(x, y, return_dict=True)["loss"])
    with pytest.raises(UsageError, match="DOT keeps two gradients apart, .* global_clipnorm"):
        compiled(name="dot", global_clipnorm=1.0)


def test_labels_of_students_are_smoothed():
    loss = compiled(smoothing=0.2).label_loss
    logits = np.array([[2.0, 0, 0, 0, 0]], "float32")
    shares = np.exp(logits) / np.exp(logits).sum()
    # 0.2 of the label is spread over the five classes.
    expected = -np.sum(np.array([[0.84, 0.04, 0.04, 0.04, 0.04]]) * np.log(shares))
    assert float(loss(np.eye(5)[:1], logits)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "scores, patience, stopped",
    [
        ([0.1, 0.3, 0.2], 1, True),
        ([0.1, 0.3, 0.2], 2, False),
        ([0.1, 0.3, 0.3, 0.3], 2, True),  # As good is no better.
        ([0.1, 0.2, 0.3], 1, False),
        ([0.3, 0.2, 0.1], None, False),
        ([None, None, None], 1, False),  # There is no validation.
        ([], 1, False),
    ],
)
def test_when_patience_is_at_an_end(scores, patience, stopped, tmp_path):
    progress = fitting.Progress(None, tmp_path, "run", patience=patience)
    progress.history = [{} if score is None else {"val_accuracy": score} for score in scores]
    assert progress.is_stopped() == stopped


def test_the_last_layer_is_trained_alone_first(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (24, *tiny.SHAPE), "uint8")
    arrays = tfkd.data.Arrays((images, np.arange(24) % 5))
    data = tfkd.data.load(arrays, batch_size=8, validation=0, test=8)
    made = config.default_config("alone", "", "resnet8")
    inner = tiny.model()
    pixels = keras.Input(tiny.SHAPE)
    model = keras.Model(pixels, inner(pixels))
    inner.layers[1].trainable = False  # By the user, for good.
    before = {variable.path: variable.numpy() for variable in model.variables}
    execute.train_head(made, data, model, 1, 0.1, tmp_path)
    changed = {v.path for v in model.variables if not np.array_equal(v, before[v.path])}
    assert changed == {variable.path for variable in inner.get_layer("logits").weights}
    flags = [layer.trainable for layer in inner.layers]
    assert not flags[1] and all(flags[2:])
    assert (tmp_path / "checkpoint.npz").exists()
    execute.train_head(made, data, model, 0, 0.1, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_teacher_is_trained_on_more_images_than_its_student(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (40, *tiny.SHAPE), "uint8")
    arrays = tfkd.data.Arrays((images, np.arange(40) % 5))
    tfkd.data.register("teacher_sees_more", lambda: arrays)
    made = config.default_config("kd", "resnet8", "resnet8")
    made.data.update({"name": "teacher_sees_more", "batch_size": 8, "validation": 8, "test": 8})
    made.data.train_examples, made.teacher.train_examples, made.teacher.epochs = 8, 24, 1
    data = assemble.load_data(made)
    assert data.steps_per_epoch == 1
    teacher = assemble.get_teacher(made, data, tmp_path)
    execute.train_teacher(made, data, teacher, tmp_path)
    with np.load(tmp_path / "teacher" / "checkpoint.npz") as found:
        steps = [int(x) for x in found.values() if x.dtype == "int64" and x.shape == ()]
    assert 3 in steps
    assert config.of_teacher(made).data.train_examples == 24
    made.teacher.train_examples = None
    assert config.of_teacher(made).data.train_examples == 8


@pytest.mark.parametrize(
    "method, count", [("kd", 1), ("mutual", 2), ("kdcl:peers=resnet8+resnet14", 3)]
)
def test_as_many_augmentations_as_there_are_students(method, count):
    made = config.default_config(method, "resnet8", "resnet8")
    assert work_directory.peer_views(made) == 1
    made.data.peer_views = True
    assert work_directory.peer_views(made) == count


def test_a_run_of_an_earlier_version_goes_on_where_its_defaults_held(tmp_path):
    made = config.default_config("kd", "resnet14", "resnet8")
    stored = json.loads(guard.as_json(made))
    del stored["label_smoothing"], stored["student"]["head_epochs"]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    guard.check_same_config(made, tmp_path)
    made.label_smoothing = 0.1
    with pytest.raises(UsageError, match="another config .label_smoothing 0.0 there, 0.1 now"):
        guard.check_same_config(made, tmp_path)


@pytest.mark.slow
def test_a_run_ends_before_its_last_epoch_and_resumes_as_ended(tmp_path, capsys):
    flags = [
        SMALL[0].replace(":", ":method=alone,"),
        *SMALL[1:],
        f"--data_dir={tmp_path / 'tfds'}",
        f"--workdir={tmp_path / 'run'}",
        *("--config.epochs=9", "--config.patience=2", "--config.optimizer.learning_rate=1e-12"),
        *("--config.label_smoothing=0.1", "--config.data.balanced=True"),
        *("--config.optimizer.name=adamw", "--config.student.head_epochs=1"),
    ]
    call(train.train, *flags)
    text = capsys.readouterr().out
    assert "stopped after epoch" in text and "the last layer alone" in text
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert summary["student"]["last"]["epoch"] == len(rows) - 1 < 9
    (tmp_path / "run" / "summary.json").unlink()
    call(train.train, *flags)
    again = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert again["student"]["test_accuracy"] == summary["student"]["test_accuracy"]
    assert (tmp_path / "run" / "metrics.csv").read_text().splitlines() == rows
