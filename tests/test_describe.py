import functools
import inspect
import os
import subprocess
import sys

import pytest
import tensorflow_datasets as tfds
from tfkd.describe import describe, method_in_lines

import tfkd
from tfkd import distillers, errors
from tfkd.errors import UsageError


def rows(text):
    """Returns the `{first word: rest}` of the lines that are indented by two."""
    lines = [line[2:] for line in text.splitlines() if line.startswith("  ") and line[2] != " "]
    return {line.partition(" ")[0]: line.partition(" ")[2].strip() for line in lines}


def test_the_list_names_everything_that_exists():
    text = describe()
    listed = rows(text)
    expected = ["alone", "KnowledgeDistiller", *tfkd.losses.available(), *tfkd.data.available()]
    assert all(listed[name] for name in expected)
    assert set(distillers.available()) <= set(listed)
    assert not {"Distiller", "Report", "available"} & set(listed)
    assert listed["at"] == (
        "where in the image the features are strong (Zagoruyko and Komodakis, 2017)."
    )
    assert listed["fashion_mnist"] == "28x28x1 images, 10 classes"
    families = [line.split() for line in text.splitlines() if line.startswith("    ")]
    assert sum(families, []) == tfkd.models.available()
    assert ["vgg8", "vgg11", "vgg13", "vgg16", "vgg19"] in families
    assert max(map(len, text.splitlines())) <= 100


def test_methods_of_ones_own_are_told_by_their_class():
    class Documented(tfkd.KnowledgeDistiller):
        """Distils twice."""

        id = "documented_for_tests"

    class Undocumented(tfkd.KnowledgeDistiller):
        id = "undocumented_for_tests"

    listed = rows(describe())
    assert listed[Documented.id] == "Distils twice."
    assert listed[Undocumented.id] == inspect.getdoc(tfkd.KnowledgeDistiller).splitlines()[0]


@pytest.mark.parametrize("name", list(tfkd.losses.available()))
def test_a_loss_is_told_by_its_docstring(name):
    cls = tfkd.losses.available()[name]
    text = describe(name)
    facts = rows(text)
    assert facts["id"] == name
    assert facts["class"] == f"tfkd.losses.{cls.__name__}"
    assert text.endswith(f"\n\n{inspect.getdoc(cls)}")
    assert describe(cls.__name__) == text


def test_a_loss_is_told_with_defaults_and_needs():
    text = describe("ft")
    assert (
        "  distils at  last_map\n  takes taps  maps (batch, height, width, channels), or tok"
        in text
    )
    assert "\n  needs       a stage before training\n" in text
    assert rows(text)["arguments"].startswith("rate=0.5, weight=200.0, spots=None, name=None")
    assert rows(describe("dkd"))["needs"] == "labels"
    assert rows(describe("sp"))["needs"] == "the batch of all replicas"
    assert "positions of the samples" in rows(describe("crd"))["needs"]
    assert "needs" not in rows(describe("kd"))
    takes = {name: rows(describe(name))["takes"] for name in ("kd", "sp", "fitnet")}
    assert takes["kd"] == "taps  logits (batch, classes)"
    assert takes["sp"] == "taps  of any shape (batch, ...)"
    assert takes["fitnet"].startswith("taps  vectors (batch, features), or maps (batch, height")


def test_a_distiller_is_told_by_its_docstring():
    text = describe("KnowledgeDistiller")
    assert rows(text)["class"] == "tfkd.KnowledgeDistiller"
    assert rows(text)["arguments"].startswith("student, teacher=None, losses=None")
    assert text.endswith(inspect.getdoc(tfkd.KnowledgeDistiller))


def test_a_model_is_told_with_its_taps():
    facts = rows(describe("wrn_40_2"))
    model = tfkd.models.create("wrn_40_2", 100)
    assert facts["parameters"] == f"{model.count_params():,}"
    assert facts["multiply-adds"] == f"{tfkd.models.multiply_adds(model):,}"
    sizes = {"stem": "32x32x16", "stage3": "8x8x128", "pooled": "128", "logits": "100"}
    assert sizes.items() <= facts.items()


@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2"])
def test_a_model_is_told_with_its_paper(name):
    references = describe(name).partition("References:\n")[2]
    assert references.startswith("    - [") and "https://arxiv.org/abs/" in references


def test_a_data_set_is_told_with_what_is_known(monkeypatch, tmp_path):
    elsewhere = functools.partial(tfds.builder, data_dir=tmp_path)
    monkeypatch.setattr("tensorflow_datasets.builder", elsewhere)
    facts = rows(describe("digits"))
    assert facts["images"] == "8x8x1" and facts["classes"] == "10"
    assert facts["mean"] == "0.3058" and facts["augmentation"] == "crop"
    assert facts["examples"].startswith("known once the data set is prepared")
    assert "scikit-learn" in describe("digits").splitlines()[-1]
    assert not list(tmp_path.iterdir())
    tfkd.data.load("digits", data_dir=tmp_path)
    assert rows(describe("digits"))["examples"] == "train 1,297, test 500"


@pytest.mark.parametrize(
    "name, message",
    [
        ("kdd", "Unknown name 'kdd'; did you mean kd"),
        ("AT", "did you mean at"),
        ("resnet21", "did you mean .*resnet20"),
        ("attentiontransfer", "did you mean AttentionTransfer"),
        ("qqqqq", "Unknown name 'qqqqq'; python -m tfkd.describe lists all"),
    ],
)
def test_an_unknown_name(name, message):
    with pytest.raises(UsageError, match=message) as error:
        describe(name)
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (["at"], 0, None),
        (["kdd"], errors.MISTAKE, "error: Unknown name 'kdd'; did you mean kd"),
        (["kd", "at"], errors.MISTAKE, "error: One name at a time"),
        (["--nmae=at"], errors.MISTAKE, "error: Unknown command line flag 'nmae'"),
    ],
)
def test_the_command(arguments, code, message):
    command = [sys.executable, "-m", "tfkd.describe", *arguments]
    process = subprocess.run(command, capture_output=True, encoding="utf-8", env=os.environ)
    assert process.returncode == code, process.stderr
    assert process.stdout == ("" if code else describe(*arguments) + "\n")
    mistakes = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
    assert len(mistakes) == (message is not None) and "Traceback" not in process.stderr
    assert message is None or mistakes[0].startswith(message)


def test_a_method_is_told_in_lines():
    found = method_in_lines("sakd+at:at.weight=60.0")
    assert list(found) == ["sakd", "at"] and found["at"].startswith("AT: where in the image")
    assert list(method_in_lines("alone").values())[0].startswith("Trains the")


def test_a_method_is_found_by_id_and_by_class():
    text = describe("ackd")
    assert text == describe("ACKD") == describe("ackd:attention=logit")
    assert describe("sakd+at") == describe("sakd")
    assert rows(text)["optimizers"] == "optimizer, discriminator_optimizer"
    assert rows(text)["class"] == "tfkd.ACKD"
