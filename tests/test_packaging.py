"""What is released: the version, the repository's address, the sdist and the wheel."""

import fnmatch
import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import types
import venv
import zipfile

import numpy as np
import pytest
from commands import REPOSITORY, ROOT
from PIL import Image

import tfkd
import tfkd_cli

#: Where the repository's address is written out.
WITH_ADDRESS = ("README.md", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "SECURITY.md")


def test_one_version_is_said_everywhere():
    assert tfkd.__version__ == tfkd_cli.VERSION
    newest = re.search(r"^## \[(.+)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert newest[1] == tfkd_cli.VERSION


def test_one_address_is_written_everywhere():
    pages = [ROOT / name for name in WITH_ADDRESS]
    pages += [*ROOT.glob("colab/*.ipynb"), *ROOT.glob("docs/*.md"), *ROOT.glob(".github/**/*.*")]
    found = {}
    for page in pages:
        # Colab's links have no ".com".
        for address in re.findall(r"github(?:\.com)?/([\w-]+/tfkd)\b", page.read_text("utf-8")):
            found.setdefault(address, page.name)
    assert found.keys() == {REPOSITORY.removeprefix("https://github.com/")}, found


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"])
def test_what_a_page_names_is_there(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    paths = re.findall(r"`((?:\.ci|configs|docs|tests|tfkd)/[^`]*)`", text)
    paths += [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    assert paths
    for path in paths:
        assert "NAME" in path or (ROOT / path).exists(), path


def files_of(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def copy_repository(to):
    """Copies what a clone holds; builds leave files beside it."""
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    to.mkdir()
    for entry in ROOT.iterdir():
        if any(fnmatch.fnmatch(entry.name, one.strip("/")) for one in (".git", *ignored)):
            continue
        if entry.is_dir():
            shutil.copytree(entry, to / entry.name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(entry, to)


def build(kind, source, to):
    """Calls what `python -m build` calls, without a download."""
    code = f"from setuptools import build_meta; build_meta.build_{kind}({str(to)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True)


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """The wheel of the sdist of a clone, in a virtual environment of its own."""
    folder = tmp_path_factory.mktemp("release")
    found = types.SimpleNamespace(clone=folder / "clone")
    copy_repository(found.clone)
    found.files = files_of(found.clone)
    built = folder / "built"
    built.mkdir()
    build("sdist", found.clone, built)
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked")
    (found.source,) = (folder / "unpacked").iterdir()
    build("wheel", found.source, built)
    (found.wheel,) = built.glob("*.whl")
    venv.create(folder / "fresh", with_pip=True)
    found.scripts = folder / "fresh" / "bin"
    pip = [found.scripts / "python", "-m", "pip", "install", "--no-index", "--no-deps"]
    subprocess.run([*pip, found.wheel], check=True, capture_output=True, cwd=folder)
    # What tfkd depends on is borrowed from here. Below a path that a .pth file adds no other .pth
    # file is read, so that a tfkd which is installed here as editable is not.
    (found.site,) = (folder / "fresh").glob("lib/python*/site-packages")
    (found.site / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    return found


def start(release, folder, program, *arguments):
    """Starts a program of the environment in a directory; nothing of this one leads it here."""
    ours = ("PYTHONPATH", "TF_CPP_MIN_LOG_LEVEL")
    environment = {key: value for key, value in os.environ.items() if key not in ours}
    # What runs the tests may ignore Ctrl-C, and so would its children.
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(
        [release.scripts / program, *map(str, arguments)],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed,
    )


def output(process):
    """Returns what a program prints, which must succeed and have nothing to complain about."""
    printed, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    assert errors == ""
    return printed


@pytest.mark.slow
def test_the_wheel_of_the_sdist_works_where_it_is_installed(release, tmp_path):
    assert release.source.name == f"tfkd-{tfkd_cli.VERSION}"
    # So its tests, its demo and its docs are made as those of a clone.
    assert release.files <= files_of(release.source)
    with zipfile.ZipFile(release.wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    package = {f"tfkd/{name}" for name in files_of(release.clone / "tfkd")}
    configs = {f"tfkd/configs/{name}" for name in files_of(release.clone / "configs")}
    assert packed == {*package, *configs, "tfkd_cli.py"}

    def run(*arguments):
        return output(start(release, tmp_path, *arguments))

    found = run("python", "-c", "import importlib.util as u; print(u.find_spec('tfkd').origin)")
    assert found.startswith(str(release.site))
    assert run("tfkd", "--version") == f"tfkd {tfkd_cli.VERSION}\n"
    assert run("tfkd", "--help") == tfkd_cli.usage() + "\n"
    assert run("tfkd", "train", "--help") == tfkd_cli.help_of("train") + "\n"
    assert "KnowledgeDistillation" in run("tfkd", "describe", "kd")
    # Configs have come along.
    checked = run("tfkd", "check", "--config=digits:runlocal", f"--data_dir={tmp_path / 'data'}")
    assert "kd_loss" in checked


MODELS = """
import keras
from keras import layers


def small(num_classes, input_shape, width=8):
    images = x = keras.Input(input_shape)
    for stage in (1, 2):
        x = layers.Conv2D(stage * width, 3, strides=2, name=f"stage{stage}")(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.GlobalAveragePooling2D(name="pooled")(x)
    return keras.Model(images, layers.Dense(num_classes, name="logits")(x), name="small")


def large(num_classes, input_shape):
    return small(num_classes, input_shape, width=16)
"""


def photographs(folder):
    """Writes a folder of images with the usual dirt; returns the path of a broken one."""
    random = np.random.default_rng(0)
    for label, name in enumerate(("cat", "dog")):
        there = folder / "train" / name
        (there / "holidays").mkdir(parents=True)
        (there / ".ipynb_checkpoints").mkdir()
        for number in range(20):
            size = (50 + number, 70 - number, 3)
            pixels = random.integers(0, 120, size, "uint8") + np.uint8(120 * label)
            image = Image.fromarray(pixels)
            kind = ("jpg", "jpg", "png", "webp")[number % 4]
            image = image.convert({5: "L", 6: "RGBA"}.get(number, "RGB"))
            image.save(there / ("holidays" if number > 16 else "") / f"{number}.{kind}")
        (there / ".ipynb_checkpoints" / "0.png").write_bytes((there / "2.png").read_bytes())
        (there / "notes.txt").write_text("dirt")
    broken = folder / "train" / "cat" / "broken.jpg"
    broken.write_bytes((folder / "train" / "cat" / "0.jpg").read_bytes()[:200])
    return broken


@pytest.mark.slow
def test_a_newcomer_comes_from_photographs_to_a_file_for_a_phone(release, tmp_path):
    """By the installed command alone, in an empty directory, with models and images of their own.

    Nobody is warned of anything, and epochs take one line of 80 columns.
    """
    broken = photographs(tmp_path / "photos")
    (tmp_path / "my_models.py").write_text(MODELS)

    def tfkd_(*arguments):
        return start(release, tmp_path, "tfkd", *arguments)

    assert "Written: mine/config.py" in output(tfkd_("init", "mine"))
    config = tmp_path / "mine" / "config.py"
    text = config.read_text()
    for old, new in (
        ('teacher="keras_applications:ResNet50V2"', 'teacher="my_models:large"'),
        ('student="keras_applications:MobileNetV3Small"', 'student="my_models:small"'),
        ("image_size = 224", "image_size = 32"),
        ("batch_size = 32", "batch_size = 8"),
        ("config.epochs = config.teacher.epochs = 60", "config.epochs = config.teacher.epochs = 4"),
    ):
        assert old in text
        text = text.replace(old, new)
    config.write_text(text)

    checked = output(tfkd_("check", "--config=mine/config.py"))
    assert "train 32 (train/), validation 4 (set aside from train/), test 4" in checked
    assert f"1 broken file (photos/{broken.relative_to(tmp_path / 'photos')})" in checked
    assert "2 hidden" in checked and "2 .txt" in checked and "kd_loss" in checked

    train = ("train", "--config=mine/config.py", "--workdir=run")
    process, printed = tfkd_(*train), []
    for line in process.stdout:
        printed.append(line)
        if line.startswith("epoch 1/4") and "training the student\n" in printed:
            process.send_signal(signal.SIGINT)
            break
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    assert errors == "\nInterrupted; the same command resumes.\n"
    resumed = output(tfkd_(*train)).splitlines()
    assert any(line.startswith("resuming after epoch 1 of 4") for line in resumed)
    epochs = [line for line in resumed if line.startswith("epoch ")]
    assert len(epochs) == 3 and max(map(len, epochs)) < 80
    assert resumed[-2] == "  tfkd report --workdir=run"
    again = output(tfkd_(*train)).splitlines()
    # Asked again, it tells the result again.
    assert "run holds this run, complete." in again
    result = again[again.index("run holds this run, complete.") + 1 :]
    assert result == resumed[-len(result) :] and result[0].startswith("teacher: test accuracy")

    assert "Written: run/report.html" in output(tfkd_("report", "--workdir=run"))
    assert "confus" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8").lower()
    output(tfkd_("export", "--workdir=run", "--format=tflite", "--quantize=int8"))
    assert (tmp_path / "run/export/student-int8.tflite").stat().st_size > 1000
    labels = tmp_path / "run/export/student-int8.tflite.labels.txt"
    assert labels.read_text() == "cat\ndog\n"
