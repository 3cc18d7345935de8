import contextlib
import json

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from tfkd.data import available, load
from tfkd.data.sources import KNOWN, Source
from tfkd.errors import UsageError


class Tiny(tfds.core.GeneratorBasedBuilder):
    """Grey images with labels, in splits of ImageNet's names."""

    VERSION = tfds.core.Version("1.0.0")
    code_path = None
    label_of_last = 0

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(4, 4, 1)),
            "label": tfds.features.ClassLabel(names=["cat", "dog"]),
            "name": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(30), "validation": self._generate_examples(10)}

    def _generate_examples(self, count):
        for i in range(count):
            label = self.label_of_last if i == count - 1 else i % 2
            image = np.full((4, 4, 1), 7 * i, np.uint8)
            yield i, {"image": image, "label": label, "name": str(i)}


class TinyUnlabeled(Tiny):
    label_of_last = -1


class TinyHidden(Tiny):
    """As ImageNet, whose test split has no labels."""

    def _split_generators(self, dl_manager):
        hidden = ((key, {**one, "label": -1}) for key, one in self._generate_examples(6))
        return {**super()._split_generators(dl_manager), "test": hidden}


class TinyTrainOnly(Tiny):
    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(5)}


class TinyBroken(Tiny):
    def _split_generators(self, dl_manager):
        raise tfds.download.DownloadError("Failed to get url\n https://a.b. HTTP code: 404.")


class TinyManual(Tiny):
    MANUAL_DOWNLOAD_INSTRUCTIONS = "manual_dir should contain tiny.tar."
    url_infos = {"http://127.0.0.1:1/tiny.zip": None}

    def _split_generators(self, dl_manager):
        raise AssertionError(f"{dl_manager.manual_dir}/tiny.tar is not there")


class TinyUnreachable(Tiny):
    url_infos = {"http://127.0.0.1:1/tiny.zip": None}


class TinyOfFloats(Tiny):
    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(4, 4, 1), dtype=np.float32),
            "label": tfds.features.ClassLabel(num_classes=2),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))


class TinyUnclassified(Tiny):
    def _info(self):
        features = {"image": tfds.features.Image(), "caption": tfds.features.Text()}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))


def write_folder(root, sizes, splits=("train", "test")):
    """Writes `split/class/number.png`: one colour image per size and class."""
    rng = np.random.default_rng(0)
    for split in splits:
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for i, size in enumerate(sizes):
                image = rng.integers(0, 256, (*size, 3), np.uint8)
                path = root / split / name / f"{i}.png"
                path.write_bytes(tf.io.encode_png(image).numpy())
    return root


def test_available_names_are_known_to_tfds():
    assert available() == list(KNOWN)
    for name, known in KNOWN.items():
        features = tfds.builder(name).info.features
        assert len(known.mean) == len(known.std) == features["image"].shape[-1]


def test_any_data_set_of_tfds_loads_with_computed_statistics(tmp_path):
    data = load("tiny", batch_size=4, validation=0.2, data_dir=tmp_path)
    assert data.sizes == {"train": 24, "validation": 6, "test": 10}
    assert data.class_names == ("cat", "dog") and data.augment == ()
    images, _ = Source("tiny", tmp_path).into_memory("train", 0, 24)
    np.testing.assert_allclose(data.mean, [np.mean(images / 255)])
    np.testing.assert_allclose(data.std, [np.std(images / 255)])


def test_a_test_split_without_labels_is_none(tmp_path):
    data = load("tiny_hidden", batch_size=4, validation=0.2, data_dir=tmp_path)
    assert data.sizes == {"train": 24, "validation": 6, "test": 10}
    labels = np.concatenate([labels for _, labels in data.test.as_numpy_iterator()])
    assert labels.min() == 0


def test_a_version_a_builder_and_a_prepared_directory_are_names_too(tmp_path):
    for name in ("tiny:1.0.0", tfds.builder("tiny", data_dir=tmp_path), tmp_path / "tiny/1.0.0"):
        assert Source(name, tmp_path).size("train") == 30


@pytest.mark.parametrize("key", ["pythonClassName", "python_class_name", "type"])
@pytest.mark.parametrize("by_name", [True, False])
def test_prepared_files_import_no_module(tmp_path, monkeypatch, key, by_name):
    Source("tiny", tmp_path)
    (tmp_path / "tiny").rename(tmp_path / "of_a_stranger")
    folder = tmp_path / "of_a_stranger" / "1.0.0"
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace('"tiny"', '"of_a_stranger"'))
    module = f"came_with_the_data_{key}_{by_name}"  # Each is imported once in a process.
    (tmp_path / f"{module}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    features = folder / "features.json"
    value = json.loads(features.read_text())
    assert value.pop("pythonClassName").startswith("tensorflow_datasets.")
    # The escape hides the key from who only searches the text.
    value = {"content": {}} if key == "type" else value
    text = json.dumps({"XX": f"{module}.Feature", **value})
    features.write_text(text.replace("XX", f"\\u{ord(key[0]):04x}{key[1:]}"))
    monkeypatch.syspath_prepend(tmp_path)
    name = "of_a_stranger" if by_name else folder
    with pytest.raises(UsageError, match=f"names '{module}.Feature', a class outside"):
        Source(name, tmp_path)
    assert not (tmp_path / "ran").exists()  # As it does where TFDS is left to itself.
    with contextlib.suppress(ValueError):
        tfds.builder_from_directory(folder)
    assert (tmp_path / "ran").exists()
    features.write_text("{")
    with pytest.raises(UsageError, match="features.json is damaged"):
        Source(name, tmp_path)


@pytest.mark.parametrize("cache", [True, False])
def test_a_folder_of_images_of_one_size(tmp_path, cache):
    path = write_folder(tmp_path, [(6, 9)] * 10)
    data = load(str(path), batch_size=4, validation=4, cache=cache)
    assert data.sizes == {"train": 16, "validation": 4, "test": 20}
    assert data.input_shape == (6, 9, 3) and data.class_names == ("cat", "dog")
    source = Source(str(path))
    train, held_out = (source.into_memory("train", *part) for part in ((0, 16), (16, 20)))
    images = next(iter(data.validation))[0] * np.array(data.std) + np.array(data.mean)
    np.testing.assert_allclose(images * 255, held_out[0], atol=1e-3)
    every = np.concatenate([train[0], held_out[0]])
    assert len({image.tobytes() for image in every}) == 20
    np.testing.assert_allclose(data.mean, np.mean(train[0] / 255, (0, 1, 2)))
    np.testing.assert_allclose(data.std, np.std(train[0] / 255, (0, 1, 2)))
    assert next(iter(data.train))[0].shape == (4, 6, 9, 3)


def test_images_are_resized_where_a_size_is_given(tmp_path):
    path = write_folder(tmp_path, [(6, 9), (20, 10)])
    images, labels = Source(str(path), image_size=(4, 5)).into_memory("train", 0, 4)
    assert images.shape == (4, 4, 5, 3)
    for label, name in enumerate(("cat", "dog")):
        originals = [
            tf.io.decode_png((path / "train" / name / f"{i}.png").read_bytes()) for i in range(2)
        ]
        expected = [
            np.round(tf.image.resize(original, (4, 5), antialias=True)) for original in originals
        ]
        found = sorted(images[labels == label].tolist())
        np.testing.assert_array_equal(found, sorted(np.array(expected).tolist()))


def test_varying_sizes_are_found_at_the_start_or_where_they_appear(tmp_path):
    early = write_folder(tmp_path / "early", [(6, 9), (9, 6)])
    with pytest.raises(UsageError, match="vary in size: pass image_size"):
        load(str(early))
    late = write_folder(tmp_path / "late", [(6, 6)] * 3, splits=["train"])
    write_folder(late, [(7, 7)], splits=["test"])
    with pytest.raises(UsageError, match="vary in size: pass image_size"):
        load(str(late), batch_size=1)


@pytest.mark.parametrize(
    "name, message",
    [
        ("tiny_unlabeled", "Labels of 'tiny_unlabeled', split 'train', .* 0 to 1; found -1 to 1"),
        ("tiny_train_only", "needs a split 'train' and one of 'test', .*; it has train"),
        ("tiny_of_floats", "'tiny_of_floats' must be uint8 .* float32 of shape"),
        ("tiny_unclassified", "'image' .* and 'label' .* it has .*caption"),
        ("tiny_manual", "downloads oneself, to .*manual: manual_dir .* tiny.tar. .*does not exist"),
        ("no_such_data_set", "Unknown data set 'no_such_data_set': .* cifar100, digits"),
        ("cifar10:9.9.9", "'cifar10:9.9.9' cannot be opened: .*only: 3"),
        ("a b", "'a b' cannot be opened"),
        ("./nowhere", "There is no directory 'nowhere'"),
        (7, "path of a data set, tfkd.data.Arrays or a TFDS builder; received a int"),
        ((np.zeros((2, 4, 4, 1)), np.zeros(2)), "received a tuple"),
    ],
)
def test_data_sets_that_cannot_be_used(tmp_path, name, message):
    with pytest.raises(UsageError, match=message) as raised:
        load(name, data_dir=tmp_path, batch_size=2)
    assert "\n" not in str(raised.value)


def test_a_directory_without_images_is_no_data_set(tmp_path):
    with pytest.raises(UsageError, match="is no data set: it needs to hold split/class/image"):
        load(str(tmp_path))


@pytest.mark.parametrize(
    "name, reason",
    [
        ("tiny_broken", "DownloadError: Failed to get url https://a.b. HTTP code: 404."),
        ("tiny_unreachable", r"127\.0\.0\.1:1 cannot be reached \(.*[Rr]efused"),
    ],
)
def test_a_download_that_fails_is_explained_and_leaves_nothing(tmp_path, monkeypatch, name, reason):
    monkeypatch.setenv("no_proxy", "*")
    with pytest.raises(UsageError, match=reason) as raised:
        load(name, data_dir=tmp_path)
    message = str(raised.value)
    assert message.startswith(f"Data set {name!r} is not prepared in {tmp_path} and could not be")
    assert f"tfds.builder({name!r}, data_dir=...).download_and_prepare()" in message
    assert "\n" not in message
    assert not (tmp_path / name).exists()


def test_damaged_files_are_named(tmp_path):
    source = Source("tiny", tmp_path)
    record = next((tmp_path / "tiny" / "1.0.0").glob("*train.tfrecord*"))
    record.write_bytes(record.read_bytes()[:-20])
    with pytest.raises(UsageError, match=f"data set in {tmp_path}.* cannot be read.*delete"):
        source.into_memory("train", 0, 30)
