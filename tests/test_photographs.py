"""The protocol of ImageNet on a folder of a few photographs, from the command line."""

import json

import keras
import numpy as np
import pytest
from commands import call

from tfkd import train
from tfkd.export import export_run
from tfkd.runs import evaluation


def write_photographs(root):
    """Writes images of several sizes; those of a class are brighter on the left or on the right."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 4), ("test", 8)):
        for label, name in enumerate(("left", "right")):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                height, width = generator.integers(70, 100, 2)
                image = generator.uniform(0, 128, (height, width, 3))
                half = slice(width // 2) if label == 0 else slice(width // 2, None)
                image[:, half] += 127
                keras.utils.save_img(root / split / name / f"{number}.jpg", image)


@pytest.mark.slow
def test_imagenets_config_and_a_teacher_that_sees_larger_images(tmp_path, capsys):
    photographs = tmp_path / "photographs"
    write_photographs(photographs)
    shared = [
        f"--config.data.name={photographs}",
        "--config.data.train_examples=16",
        "--config.data.normalize=False",
    ]
    first, second = tmp_path / "first", tmp_path / "second"
    call(
        train.train,
        "--config=imagenet:runlocal,method=alone,student=resnet18_imagenet",
        *shared,
        f"--workdir={first}",
    )
    assert "64x64x3, 2 classes; train 16, validation 8, test 16" in capsys.readouterr().out
    call(
        train.train,
        f"--config=imagenet:runlocal,student=mobilenet_v1,teacher={first / 'student.keras'}",
        *shared,
        "--config.data.image_size=32",
        "--config.data.views=2",
        "--config.teacher.image_size=64",
        "--config.teacher.from_original=True",
        "--config.teacher.cache=True",
        "--config.diagnostics=True",
        f"--workdir={second}",
    )
    printed = capsys.readouterr().out
    assert "images of 64x64x3 cut from the original" in printed
    assert "32x32x3\n" in printed and "64x64x3, its own" in printed
    # It sees what it was trained on, so that it says the same of every test image as before.
    scores = [
        evaluation.evaluate(folder, model=name)[0][name]
        for folder, name in ((first, "student"), (second, "teacher"))
    ]
    assert scores[1]["cross_entropy"] == pytest.approx(scores[0]["cross_entropy"], rel=1e-4)
    summary = json.loads((second / "summary.json").read_text())
    assert summary["teacher"]["test_accuracy"] == scores[0]["accuracy"]
    student = second / "student.keras"
    original, exported = export_run(second, "keras", model="teacher")
    assert original["test_accuracy"] == exported["test_accuracy"] == scores[0]["accuracy"]
    sizes = [keras.models.load_model(path).input_shape[1] for path in (exported["path"], student)]
    assert sizes == [64, 32]
