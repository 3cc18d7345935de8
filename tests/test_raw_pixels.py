"""Runs on pixels of 0 to 255, for models that bring their own preprocessing."""

import functools
import json

import keras
import numpy as np
import pytest
from commands import SMALL, call

import tfkd
from tfkd import check, compare, evaluate, export, train
from tfkd.runs import work_directory

RAW = [*SMALL[1:], "--config.data.normalize=False", "--config.epochs=1"]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("tfds")


@pytest.fixture(scope="module")
def data(data_dir):
    return tfkd.data.load("digits", normalize=False, data_dir=data_dir)


def trained(batches, validation, *first):
    """A small teacher that has learnt something on these images."""
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((8, 8, 1))
    for layer in first:
        x = layer(x)
    x = keras.layers.Conv2D(32, 3, activation="relu", name="stage1")(x)
    x = keras.layers.Conv2D(32, 3, activation="relu", name="stage2")(x)
    outputs = keras.layers.Dense(10)(keras.layers.Flatten()(x))
    model = keras.Model(inputs, outputs)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.005), loss, metrics=["accuracy"])
    model.fit(batches, epochs=3, verbose=0)
    assert model.evaluate(validation, verbose=0)[1] > 0.8
    return model


@pytest.fixture(scope="module")
def teacher(data, tmp_path_factory):
    """The path of one with its preprocessing inside, or of one that takes values in [-1, 1]."""
    folder = tmp_path_factory.mktemp("teachers")
    rescaling = keras.layers.Rescaling(1 / 127.5, -1)

    @functools.cache
    def path(name):
        if name == "inside":
            model = trained(data.train, data.test, rescaling)
        else:
            model = trained(
                *(
                    split.map(lambda images, labels: (rescaling(images), labels))
                    for split in (data.train, data.test)
                )
            )
        model.save(folder / f"{name}.keras")
        return folder / f"{name}.keras"

    return path


OWN = {
    "inside": [],
    "outside": ["--config.teacher.mean=(0.5,)", "--config.teacher.std=(0.5,)"],
}


@pytest.fixture(scope="module")
def finished(teacher, data_dir, tmp_path_factory):
    """The work directory of a run with one of these teachers."""
    folder = tmp_path_factory.mktemp("runs")

    @functools.cache
    def run(name):
        given = SMALL[0].replace("teacher=resnet14", f"teacher={teacher(name)}")
        flags = [*RAW, *OWN[name], f"--data_dir={data_dir}", f"--workdir={folder / name}"]
        call(train.train, given, *flags)
        return folder / name

    return run


@pytest.mark.parametrize("name", ["inside", pytest.param("outside", marks=pytest.mark.slow)])
def test_a_teacher_sees_the_images_that_it_was_trained_on(name, finished, teacher, data):
    summary = json.loads((finished(name) / "summary.json").read_text())
    model = keras.models.load_model(teacher(name))
    hits = []
    for images, labels in data.pixels("test").as_numpy_iterator():
        images = images.astype("float32")
        images = images if name == "inside" else images / 127.5 - 1
        hits.append(model.predict(images, verbose=0).argmax(-1) == labels)
    expected = np.mean(np.concatenate(hits))
    assert expected > 0.8
    assert summary["teacher"]["test_accuracy"] == pytest.approx(expected, abs=0.003)


def test_evaluate_uses_what_the_run_used(finished, data_dir):
    summary = json.loads((finished("inside") / "summary.json").read_text())
    scores, _ = evaluate.evaluate(finished("inside"), data_dir=data_dir)
    for name in ("student", "teacher"):
        expected = summary[name]["test_accuracy"]
        assert scores[name]["accuracy"] == pytest.approx(expected, abs=0.003)


@pytest.mark.slow
@pytest.mark.parametrize("name, model", [("inside", "student"), ("outside", "teacher")])
def test_an_exported_model_takes_the_pixels(name, model, finished, data, data_dir, tmp_path):
    path = tmp_path / "exported.keras"
    _, exported = export.export_run(
        finished(name), "keras", model=model, output=path, data_dir=data_dir
    )
    assert exported["equal_predictions"] == 1.0
    images, _ = next(data.pixels("test").as_numpy_iterator())
    outputs = keras.models.load_model(path, compile=False).predict(images, verbose=0)
    run = work_directory.WorkDirectory(finished(name))
    values = images.astype("float32")
    values = values if model == "student" else values / 127.5 - 1
    expected = run.model(model).predict(values, verbose=0)
    np.testing.assert_allclose(outputs, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def test_int8_takes_them_too(finished, data_dir, tmp_path):
    _, exported = export.export_run(
        finished("inside"), "tflite", "int8", "teacher", tmp_path / "t.tflite", data_dir=data_dir
    )
    assert exported["test_accuracy"] > 0.8


def test_check_sees_pixels(teacher, data_dir, capsys):
    given = SMALL[0].replace("teacher=resnet14", f"teacher={teacher('inside')}")
    call(check.check, given, *RAW, f"--data_dir={data_dir}", needs_workdir=False)
    printed = capsys.readouterr().out
    assert "near chance" not in printed


@pytest.mark.slow
def test_compare_trains_its_teacher_on_pixels(data_dir, tmp_path, data):
    arguments = ["--methods=alone,kd", "--seeds=1", f"--data_dir={data_dir}"]
    call(compare.main, SMALL[0], *RAW, *arguments, f"--workdir={tmp_path}")
    for folder in ("teacher", "alone-seed0", "kd-seed0"):
        summary = json.loads((tmp_path / folder / "summary.json").read_text())
        model = keras.models.load_model(tmp_path / folder / "student.keras")
        hits = [model.predict(x, verbose=0).argmax(-1) == y.numpy() for x, y in data.test]
        expected = summary["student"]["test_accuracy"]
        assert np.mean(np.concatenate(hits)) == pytest.approx(expected, abs=0.003)


def test_the_adversary_sees_pixels_as_its_own_range(data):
    students = [tfkd.models.create("resnet8", 10, (8, 8, 1), seed=seed) for seed in (0, 1)]
    distiller = tfkd.ACN(students, image_mean=data.mean, image_std=data.std)
    x = data.pixels("test").as_numpy_iterator().next()[0].astype("float32")
    scaled = x * np.array(distiller._scale) + np.array(distiller._offset)
    assert scaled.min() == -1 and scaled.max() == 1
