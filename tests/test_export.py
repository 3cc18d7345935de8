"""What is exported says what the original says, takes pixels as they are, and is measured."""

import json
import pathlib
import re
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny
from absl import flags

import tfkd
from tfkd import command_line, config, evaluate, export, files
from tfkd.errors import UsageError
from tfkd.export import __main__ as command
from tfkd.export import write
from tfkd.runs import execute, measure

ROOT = pathlib.Path(__file__).parents[1]
CASES = {
    "keras": ("keras", None, ".keras"),
    "saved_model": ("saved_model", None, ""),
    "tflite": ("tflite", None, ".tflite"),
    "dynamic": ("tflite", "dynamic", ".tflite"),
    "float16": ("tflite", "float16", ".tflite"),
    "int8": ("tflite", "int8", ".tflite"),
    "onnx": ("onnx", None, ".onnx"),
}
ZOO = {"num_classes": 10, "input_shape": (8, 8, 1)}


def convolutions(classes=10, widths=(32, 64), shape=(8, 8, 1)):
    """A model with batch normalisation to fold, as small as shows what quantisation does."""
    x = inputs = keras.Input(shape)
    for stride, width in enumerate(widths, start=1):
        x = keras.layers.Conv2D(width, 3, stride, padding="same", use_bias=False)(x)
        x = keras.layers.ReLU()(keras.layers.BatchNormalization(momentum=0.9)(x))
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(classes)(x), name="convolutions")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(folder))
        yield folder


@pytest.fixture(scope="module")
def data(data_dir):
    return tfkd.data.load("digits", batch_size=128, data_dir=data_dir)


@pytest.fixture(scope="module")
def model(data):
    """A model that has learnt something, so that an error of its export shows."""
    keras.utils.set_random_seed(0)
    model = convolutions()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss)
    model.fit(data.train, epochs=6, verbose=0)
    assert measure.accuracy(model, data.test) > 0.85
    return model


@pytest.fixture(scope="module")
def exported(model, data, tmp_path_factory):
    """Function of a case; returns the path and what was measured, exported once."""
    folder, made = tmp_path_factory.mktemp("exported"), {}

    def get(case):
        format, quantize, ending = CASES[case]
        for package in export.FORMATS[format].packages:
            pytest.importorskip(package)
        if case not in made:
            path = folder / f"{case}{ending}"
            if case == "saved_model":
                # Whatever is there of an earlier one is replaced.
                path.mkdir()
                (path / "saved_model.pb").write_text("an old one")
                (path / "old").write_text("as well")
            made[case] = (path, *export.export(model, data, path, format, quantize))
        return made[case]

    return get


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data_dir):
    """A complete run, without validation."""
    workdir = tmp_path_factory.mktemp("runs") / "run"
    execute.run(run_config(), workdir)
    return workdir


def run_config(method="alone"):
    settings = config.default_config(method, "resnet8", "resnet8")
    settings.data.train_examples, settings.data.batch_size = 64, 32
    settings.data.validation = 0.0
    settings.epochs = settings.teacher.epochs = 1
    return settings


@pytest.fixture
def run(finished, tmp_path):
    """A copy of it, to write to."""
    return shutil.copytree(finished, tmp_path / "run")


def call(module, *arguments):
    """Runs a command in this process, as often as wanted; its flags are gone afterwards."""
    flags.FLAGS.unparse_flags()
    before = set(flags.FLAGS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["command", *map(str, arguments)])
        try:
            module._define_flags()
            command_line.main_without_config(module.main)
        finally:
            for name in set(flags.FLAGS) - before:
                delattr(flags.FLAGS, name)


def refused(capsys, module, *arguments):
    with pytest.raises(SystemExit) as stop:
        call(module, *arguments)
    printed = capsys.readouterr()
    assert stop.value.code == command_line.MISTAKE and not printed.out
    (line,) = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    return line


def outputs_of(case, path, data):
    """Runs a file by its own runtime, as a user of it would, on all test images."""
    images = np.concatenate([x for x, _ in data.pixels("test").as_numpy_iterator()])
    if case == "keras":
        return keras.models.load_model(path, compile=False).predict(images, verbose=0)
    if case == "saved_model":
        loaded = tf.saved_model.load(str(path))
        return loaded.serve(images).numpy()
    if case == "onnx":
        session = __import__("onnxruntime").InferenceSession(str(path))
        return session.run(None, {"pixels": images})[0]
    runner = tf.lite.Interpreter(str(path)).get_signature_runner()
    (outputs,) = runner(pixels=images).values()
    if case == "int8":
        (detail,) = runner.get_output_details().values()
        scale, zero_point = detail["quantization"]
        assert outputs.dtype == np.int8
        return (outputs.astype("float32") - zero_point) * scale
    return outputs


SLOW = ("dynamic", "float16")


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.slow] * (case in SLOW)) for case in CASES]
)
def test_an_exported_model_says_of_pixels_what_the_original_says(case, exported, model, data):
    path, original, found = exported(case)
    expected, labels = measure.predictions(model, data.test)
    outputs = outputs_of(case, path, data)
    difference = np.max(np.abs(outputs - expected))
    accuracy = np.mean(outputs.argmax(-1) == labels)
    if found["quantize"] is None:
        np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-4)
    # What is written down of it is true. Runtimes may compute a batch in another order.
    slack = 1e-4 if case != "int8" else 0.2
    assert found["largest_difference"] == pytest.approx(difference, abs=slack)
    assert found["test_accuracy"] == pytest.approx(accuracy, abs=0.002)
    equal = np.mean(outputs.argmax(-1) == expected.argmax(-1))
    assert found["equal_predictions"] == pytest.approx(equal, abs=0.002)
    assert original["test_accuracy"] == pytest.approx(np.mean(expected.argmax(-1) == labels))
    assert found["test_accuracy"] >= original["test_accuracy"] - 0.01
    assert min(found["milliseconds_per_image"], found["milliseconds_per_batch"]) > 0
    files = [file for file in [path, *path.rglob("*")] if file.is_file()]
    assert found["bytes"] == sum(file.stat().st_size for file in files)
    assert not (path / "old").exists()
    assert not list(path.parent.glob(".*"))
    names = path.with_name(f"{path.name}.labels.txt").read_text(encoding="utf-8")
    assert names.splitlines() == list(data.class_names)


@pytest.mark.parametrize(
    "case, least",
    [
        ("int8", 3),
        pytest.param("dynamic", 2.5, marks=pytest.mark.slow),
        pytest.param("float16", 1.8, marks=pytest.mark.slow),
    ],
)
def test_quantised_files_are_smaller(case, least, exported):
    whole = exported("tflite")[2]["bytes"]
    assert exported(case)[2]["bytes"] < whole / least


def test_int8_computes_in_integers_and_takes_pixels_as_they_are(exported):
    interpreter = tf.lite.Interpreter(str(exported("int8")[0]))
    interpreter.allocate_tensors()
    kinds = {detail["dtype"] for detail in interpreter.get_tensor_details()}
    assert np.int8 in kinds and not kinds & {np.float32, np.float16}
    (pixels,) = interpreter.get_input_details()
    assert pixels["dtype"] == np.uint8
    assert pixels["quantization"] == (pytest.approx(1.0), 0)
    # One scale for each output channel of the first convolution.
    scales = [d["quantization_parameters"]["scales"] for d in interpreter.get_tensor_details()]
    assert 32 in map(len, scales)


def test_a_keras_file_needs_keras_alone(exported, tmp_path):
    path, _, _ = exported("keras")
    loaded = keras.models.load_model(path)
    assert loaded.input.dtype == "uint8" and loaded.input_shape == (None, 8, 8, 1)
    assert export.needed_packages(path) == []
    # Where that is not so, it is seen.
    inputs = keras.Input((8, 8, 1))
    resized = keras.Model(inputs, tfkd.layers.TeacherPreprocessing(size=4)(inputs))
    keras.Sequential([resized, keras.layers.Flatten()]).save(tmp_path / "other.keras")
    assert export.needed_packages(tmp_path / "other.keras") == ["tfkd"]


def images_of(dataset):
    return {image.tobytes() for images, _ in dataset.as_numpy_iterator() for image in images}


@pytest.mark.parametrize("validation", [True, False])
def test_calibration_reads_validation_or_training_images(validation, data, data_dir):
    if not validation:
        data = tfkd.data.load("digits", validation=0, data_dir=data_dir)
    exporting = write._Exporting(None, data, "int8", False, None)
    *shown, stretched = [image for (image,) in exporting.calibration_images()]
    allowed = images_of(data.pixels("validation" if validation else "train"))
    assert {image[0].astype("uint8").tobytes() for image in shown} <= allowed
    assert len(shown) == (130 if validation else export.CALIBRATION_IMAGES)
    assert stretched.min() == 0 and stretched.max() == 255


@pytest.mark.slow
def test_probabilities(data, tmp_path):
    model = convolutions(widths=(4,))
    path = tmp_path / "model.keras"
    _, found = export.export(model, data, path, probabilities=True)
    assert found["probabilities"] and found["largest_difference"] < 1e-5
    outputs = outputs_of("keras", path, data)
    logits, _ = measure.predictions(model, data.test)
    np.testing.assert_allclose(outputs, keras.ops.softmax(logits), atol=1e-5)


@pytest.mark.slow
def test_a_model_file_of_another_precision(data, tmp_path):
    keras.config.set_dtype_policy("mixed_bfloat16")
    mixed = convolutions(widths=(4,))
    mixed.save(tmp_path / "mixed.keras")
    keras.config.set_dtype_policy("float32")
    original, found = export.export(tmp_path / "mixed.keras", data, tmp_path / "float32.keras")
    assert original["bytes"] == (tmp_path / "mixed.keras").stat().st_size
    assert found["largest_difference"] < 1e-5
    # Within what sixteen bits lose.
    expected, _ = measure.predictions(mixed, data.test)
    np.testing.assert_allclose(
        outputs_of("keras", tmp_path / "float32.keras", data), expected, atol=0.05
    )


@pytest.mark.slow
def test_a_subclassed_model_and_preprocessing(data_dir, tmp_path):
    data = tfkd.data.load("digits", data_dir=data_dir)
    layer = tfkd.layers.TeacherPreprocessing(
        size=12, mean=0.5, std=0.5, student_mean=data.mean, student_std=data.std, channels=3
    )
    model = OfTenClasses()
    _, found = export.export(model, data, tmp_path / "model", "saved_model", preprocessing=layer)
    images = np.concatenate([images for images, _ in data.test.as_numpy_iterator()])
    outputs = outputs_of("saved_model", tmp_path / "model", data)
    np.testing.assert_allclose(outputs, model(layer(images)), rtol=1e-4, atol=1e-5)
    assert found["largest_difference"] < 1e-4


class OfTenClasses(tiny.Subclassed):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.head = keras.layers.Dense(10)


@keras.saving.register_keras_serializable(package="test_export")
class Noise(keras.layers.Layer):
    """Never says the same twice."""

    def call(self, inputs):
        return inputs + keras.random.normal(keras.ops.shape(inputs))


def test_a_float_export_that_disagrees_is_not_kept(data, tmp_path):
    path = tmp_path / "model.keras"
    path.write_text("precious")
    inputs = keras.Input((8, 8, 1))
    outputs = Noise()(keras.layers.Dense(10)(keras.layers.Flatten()(inputs)))
    with pytest.raises(UsageError, match="disagrees with the original: .* It was not kept"):
        export.export(keras.Model(inputs, outputs), data, path)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["precious"]


@pytest.mark.slow
def test_what_a_converter_does_not_know_is_one_line(data, tmp_path):
    inputs = keras.Input((8, 8, 1))
    # TensorFlow Lite knows no determinant.
    squares = keras.ops.reshape(inputs, (-1, 8, 8)) + keras.ops.eye(8)
    outputs = keras.layers.Dense(10)(keras.ops.reshape(keras.ops.det(squares), (-1, 1)))
    path = tmp_path / "model.tflite"
    with pytest.raises(UsageError, match="cannot be exported as 'tflite'") as error:
        export.export(keras.Model(inputs, outputs), data, path, "tflite")
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: convolutions(classes=7), r"outputs \(None, 7\): it must .* 10 classes"),
        (lambda: convolutions(shape=(16, 16, 3)), r"takes \(16, 16, 3\); .* \(8, 8, 1\)"),
        (lambda: two_outputs(), "must output the logits"),
    ],
)
def test_models_that_do_not_fit_the_data(make, message, data, tmp_path):
    with pytest.raises(UsageError, match=message):
        export.export(make(), data, tmp_path / "model.keras")
    assert not list(tmp_path.iterdir())


def two_outputs():
    model = convolutions()
    return keras.Model(model.input, [model.output, model.output])


@pytest.mark.parametrize(
    "format, quantize, path, message",
    [
        ("onxx", None, "m.onnx", "Unknown format 'onxx': it must be one of keras, saved_model"),
        ("tflite", "int4", "m.tflite", "Unknown quantization 'int4': .*dynamic, float16, int8"),
        ("keras", "int8", "m.keras", "'int8' is for the format 'tflite' only"),
        ("tflite", None, "m.keras", "ends in .tflite"),
        ("keras", None, "folder.keras", "is a directory"),
        ("saved_model", None, "file", "is a file"),
        ("saved_model", None, "folder.keras", "holds something other than a saved model"),
    ],
)
def test_mistakes_show_before_anything_runs(format, quantize, path, message, tmp_path):
    (tmp_path / "folder.keras").mkdir()
    (tmp_path / "folder.keras" / "thesis").write_text("precious")
    (tmp_path / "file").write_text("precious")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match=message):
        export.export("none.keras", None, tmp_path / path, format, quantize)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_missing_package_is_told_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    with pytest.raises(UsageError, match=r"needs tf2onnx.*pip install 'tfkd\[onnx\]'"):
        export.check_format("onnx")


def test_the_command_writes_the_file_the_table_and_the_report(run, data_dir, capsys):
    workdir, folder = f"--workdir={run}", f"--data_dir={data_dir}"
    # What else is in the report stays.
    stored = {"ensemble": {"tflite": {"bytes": 1}}, "student": {"tflite-int8": {"bytes": 2}}}
    (run / "export.json").write_text(json.dumps(stored))
    call(command, workdir, folder, "--format=keras")
    printed = capsys.readouterr().out
    report = json.loads((run / "export.json").read_text())
    assert report["ensemble"] == stored["ensemble"]
    assert report["student"]["tflite-int8"] == {"bytes": 2}
    original, exported = report["student"]["original"], report["student"]["keras"]
    summary = json.loads((run / "summary.json").read_text())["student"]
    assert original["bytes"] == summary["bytes"]
    assert original["test_accuracy"] == pytest.approx(summary["test_accuracy"], abs=0.002)
    assert exported["path"] == str(run / "export" / "student.keras")
    table = [line for line in printed.splitlines() if line.startswith("|")]
    assert max(map(len, table)) <= 80
    head, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table]
    assert head == ["", "student, as trained", "keras"]
    assert [row[0] for row in rows] == list(export.MEASUREMENTS)
    accuracies = [f"{100 * one['test_accuracy']:.2f}" for one in (original, exported)]
    assert rows[1] == ["test accuracy %", *accuracies]
    assert keras.models.load_model(exported["path"]).input_shape == (None, 8, 8, 1)
    assert not list(run.rglob(".*"))


def test_mistakes_of_the_command(run, capsys):
    workdir = f"--workdir={run}"
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert "--workdir=DIR is missing" in refused(capsys, command, "--format=keras")
    assert "--format is missing: one of keras" in refused(capsys, command, workdir)
    assert "Unknown format 'pt'" in refused(capsys, command, workdir, "--format=pt")
    assert "Unexpected argument 'x'" in refused(capsys, command, workdir, "--format=keras", "x")
    line = refused(capsys, command, workdir, "--format=keras", "--model=ensemble")
    assert "has no ensemble.keras; it has student" in line
    line = refused(capsys, command, workdir, "--format=keras", f"--output={run}/student.keras")
    assert "is a model that the run has trained" in line
    (run / "export.json").write_text("{")
    line = refused(capsys, command, workdir, "--format=keras")
    assert "export.json is damaged" in line
    (run / "export.json").unlink()
    assert before.items() >= {p: p.stat().st_mtime_ns for p in run.rglob("*")}.items() - {
        (run, run.stat().st_mtime_ns)
    }
    (run / "summary.json").unlink()
    for module, arguments in ((command, ["--format=keras"]), (evaluate, [])):
        line = refused(capsys, module, workdir, *arguments)
        assert "has no summary.json: it is the directory of no run" in line


def test_evaluate_says_what_the_summary_says(finished, data_dir, capsys):
    call(evaluate, f"--workdir={finished}", f"--data_dir={data_dir}")
    lines = capsys.readouterr().out.splitlines()
    cells = {line.split("|")[1].strip(): line.split("|")[2].strip() for line in lines}
    summary = json.loads((finished / "summary.json").read_text())["student"]
    assert cells[""] == "student"
    assert float(cells["accuracy %"]) == pytest.approx(100 * summary["test_accuracy"], abs=0.21)
    # Fifty images of each class.
    classes = [float(cells[f"accuracy %, {digit}"]) for digit in range(10)]
    assert np.mean(classes) == pytest.approx(float(cells["accuracy %"]), abs=0.01)
    assert float(cells["top-5 accuracy %"]) >= float(cells["accuracy %"])
    assert float(cells["cross-entropy"]) > 0


def test_mistakes_of_evaluate(finished, capsys, data_dir):
    arguments = [evaluate, f"--workdir={finished}", f"--data_dir={data_dir}"]
    line = refused(capsys, *arguments, "--split=train")
    assert "Unknown split 'train': it must be one of test, validation" in line
    line = refused(capsys, *arguments, "--split=validation")
    assert "without a validation split: use --split=test" in line
    assert "has no fused.keras" in refused(capsys, *arguments, "--model=fused")
    assert "Unexpected argument 'x'" in refused(capsys, *arguments, "x")


def test_scores():
    logits = np.log([[0.5, 0.3, 0.2], [0.1, 0.6, 0.3], [0.2, 0.5, 0.3]])
    found = measure.scores(logits, np.array([0, 1, 0]))
    assert found["accuracy"] == pytest.approx(2 / 3) and found["top5_accuracy"] is None
    assert found["cross_entropy"] == pytest.approx(-np.mean(np.log([0.5, 0.6, 0.2])))
    assert found["class_accuracy"][:2] == [0.5, 1.0] and np.isnan(found["class_accuracy"][2])
    ranks = np.arange(7.0)[None].repeat(2, 0)
    assert measure.scores(ranks, np.array([2, 1]))["top5_accuracy"] == 0.5


def test_a_directory_is_written_in_one_piece(tmp_path):
    def save(text):
        def write(path):
            path.mkdir()
            (path / "file").write_text(text)
            if text == "fails":
                raise ValueError

        return write

    path = tmp_path / "folder"
    for text in ("old", "new"):
        files.write(path, save(text))
        assert (path / "file").read_text() == text
    with pytest.raises(ValueError):
        files.write(path, save("fails"))
    assert (path / "file").read_text() == "new" and list(tmp_path.iterdir()) == [path]
    # A process that is gone has left what it had begun.
    save("half")(tmp_path / ".999999999.partial.folder")
    files.remove_partial(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
def test_the_page(data, data_dir, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    model.save("my.keras")
    text = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    page = {}
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        exec(compile(block, "export.md", "exec"), page)
    assert page["exported"]["test_accuracy"] == pytest.approx(page["accuracy"], abs=0.002)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["keras", "tflite", "int8", "onnx"])
@pytest.mark.parametrize(
    "name", ["wrn_16_1", "vgg8", "mobilenet_v2", "shufflenet_v1", "shufflenet_v2"]
)
def test_every_family(name, case, data_dir, tmp_path):
    format, quantize, ending = CASES[case]
    for package in export.FORMATS[format].packages:
        pytest.importorskip(package)
    data = tfkd.data.load("digits", batch_size=100, image_size=16, data_dir=data_dir)
    model = tfkd.models.create(name, 10, data.input_shape, seed=0)
    path = tmp_path / f"model{ending}"
    _, found = export.export(model, data, path, format, quantize)
    if quantize is None:
        assert found["equal_predictions"] > 0.99
    if case == "keras":
        assert export.needed_packages(path) == []


@pytest.mark.slow
@pytest.mark.parametrize("method, model", [("mutual", "ensemble"), ("ackd", "fused")])
def test_other_models_of_a_run_and_a_process_without_tfkd(method, model, data_dir, tmp_path):
    settings = run_config(method)
    run = tmp_path / "run"
    execute.run(settings, run)
    for format in ("keras", "saved_model"):
        _, found = export.export_run(run, format, model=model, data_dir=data_dir)
        assert found["largest_difference"] < 1e-4
    needed = export.needed_packages(run / "export" / f"{model}.keras")
    assert needed == []
    code = f"""
import keras, numpy, sys
import tensorflow as tf
x = numpy.zeros((1, 8, 8, 1), "uint8")
loaded = tf.saved_model.load({str(run / "export" / f"{model}_saved_model")!r})
outputs = loaded.serve(x)
assert outputs.shape == (1, 10)
other = keras.models.load_model({str(run / "export" / f"{model}.keras")!r})
assert numpy.allclose(other(x), outputs, atol=1e-4)
assert "tfkd" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


@pytest.mark.slow
def test_int8_of_a_trained_student_is_within_a_point(data_dir, tmp_path):
    settings = config.default_config("alone", "resnet8", "resnet8")
    settings.epochs = 8
    run = tmp_path / "run"
    summary = execute.run(settings, run)
    assert summary["student"]["test_accuracy"] > 0.9
    original, found = export.export_run(run, "tflite", "int8", data_dir=data_dir)
    assert found["test_accuracy"] > original["test_accuracy"] - 0.01
    # The command, as users run it.
    for start in (
        ["tfkd.export", "--format=tflite", "--quantize=float16"],
        ["tfkd.evaluate", "--split=validation"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", *start, f"--workdir={run}", f"--data_dir={data_dir}"],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert "student" in done.stdout
