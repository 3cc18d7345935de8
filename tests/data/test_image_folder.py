import io
import traceback
import zlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfkd.data import load
from tfkd.data.image_folder import FORMATS, ImageFolder
from tfkd.data.sources import Source
from tfkd.errors import UsageError

SIZE = (6, 6)


def pixels(seed=0, mode="RGB"):
    image = np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), np.uint8)
    return Image.fromarray(image).convert(mode)


def encoded(image, format="PNG", **kwargs):
    stream = io.BytesIO()
    image.save(stream, format, **kwargs)
    return stream.getvalue()


def write(root, path, content=None):
    """Writes a file, by default a PNG image of its own."""
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(encoded(pixels(zlib.crc32(path.encode()))) if content is None else content)
    return file


def folder(root, counts):
    """Writes `{"split/class": images}`."""
    for place, count in counts.items():
        for number in range(count):
            write(root, f"{place}/{number}.png")
    return root


def labels(dataset):
    return np.concatenate([labels for _, labels in dataset.as_numpy_iterator()])


@pytest.mark.parametrize(
    "counts, sizes, said",
    [
        (
            {"train": 20, "val": 3, "test": 4},
            {"train": 40, "validation": 6, "test": 8},
            "train 40 (train/), validation 6 (val/), test 8 (test/); 2 classes",
        ),
        (
            {"train": 20, "valid": 3},
            {"train": 36, "validation": 6, "test": 4},
            "train 36 (train/), validation 6 (valid/), test 4 (set aside from train/)",
        ),
        (
            {"Train": 20, "Test": 3},
            {"train": 36, "validation": 4, "test": 6},
            "train 36 (Train/), validation 4 (set aside from Train/), test 6 (Test/)",
        ),
        (
            {"train": 20, "validation": 2, "test": 2, "notes": 1},
            {"train": 40, "validation": 4, "test": 4},
            "validation 4 (validation/), test 4 (test/); 2 classes\nLeft out: 2 in notes/\n",
        ),
        (
            {"train": 20},
            {"train": 32, "validation": 4, "test": 4},
            "validation 4 (set aside from train/), test 4 (set aside from train/)",
        ),
    ],
)
def test_splits_are_what_their_folders_say(tmp_path, capsys, counts, sizes, said):
    for split, count in counts.items():
        folder(tmp_path, {f"{split}/cat": count, f"{split}/dog": count})
    data = load(tmp_path, batch_size=4)
    assert data.sizes == sizes
    assert said in capsys.readouterr().out


def test_each_image_is_in_the_split_of_its_folder_or_in_one_part_of_train(tmp_path, capsys):
    folder(tmp_path, {"train/a": 12, "train/b": 9, "val/a": 3, "val/b": 2})
    data = load(tmp_path, batch_size=1, test=6, verbose=False)
    assert not capsys.readouterr().out
    seen = {
        split: {image.tobytes() for image, _ in data.pixels(split).unbatch().as_numpy_iterator()}
        for split in ("train", "validation", "test")
    }
    expected = {file.parts[-3]: set() for file in tmp_path.rglob("*.png")}
    for file in tmp_path.rglob("*.png"):
        expected[file.parts[-3]].add(np.asarray(Image.open(file)).tobytes())
    assert seen["validation"] == expected["val"]
    assert seen["train"] | seen["test"] == expected["train"]
    assert not seen["train"] & seen["test"] and len(seen["test"]) == 6


@pytest.mark.parametrize("cache", [True, False])
def test_what_is_set_aside_is_stratified(tmp_path, cache):
    folder(tmp_path, {"train/a": 50, "train/b": 50, "train/c": 20, "test/a": 1})
    data = load(tmp_path, batch_size=4, validation=24, cache=cache)
    np.testing.assert_array_equal(np.bincount(labels(data.validation)), [10, 10, 4])
    np.testing.assert_array_equal(np.bincount(data.train_labels()), [40, 40, 16])
    # The split itself is no longer in the order of its classes.
    assert len(set(data.train_labels()[:6])) > 1
    again = load(tmp_path, batch_size=4, validation=24, cache=cache, seed=7)
    np.testing.assert_array_equal(data.train_labels(), again.train_labels())


def dirt(root):
    folder(root, {"train/cat": 6, "train/dog": 6, "test/cat": 2})
    write(root, "train/dog/puppies/2024/deep.png")
    write(root, "train/cat/black.webp", encoded(pixels(), "WEBP"))
    write(root, "train/cat/shouting.JPG", encoded(pixels(), "JPEG"))
    for path in (
        "train/.ipynb_checkpoints/0-checkpoint.png",
        "train/cat/.ipynb_checkpoints/0.png",
        "train/cat/._0.png",
        "train/notes/read.txt",
        "train/cat/labels.csv",
        "train/cat/scan.tiff",
        "train/cat/other.tiff",
        "train/cat/README",
        "train/loose.png",
        "loose.png",
        "raw/cat/0.png",
    ):
        write(root, path, b"dirt")
    return root


def test_what_is_no_image_of_a_class_is_left_out_counted_and_said(tmp_path, capsys):
    data = load(dirt(tmp_path), batch_size=2, validation=0)
    # `notes` holds no image, and is no class; neither is a folder that begins with a dot.
    assert data.class_names == ("cat", "dog") and data.sizes["train"] == 15
    np.testing.assert_array_equal(np.bincount(data.train_labels()), [8, 7])
    told = capsys.readouterr().out.splitlines()
    assert told[1].startswith("Left out: 3 hidden, 2 .tiff, ")
    assert sorted(told[1].removeprefix("Left out: ").split(", ")) == [
        "1 .csv",
        "1 .txt",
        "1 beside the splits",
        "1 in no class folder",
        "1 in raw/",
        "1 without extension",
        "2 .tiff",
        "3 hidden",
    ]
    assert told[2:] == [
        "Training images of a class: cat 8, dog 7",
        "warning: no test image of 1 class (dog)",
    ]


def test_of_many_classes_the_smallest_and_the_largest_are_counted(tmp_path, capsys):
    counts = {f"train/{name}": 3 for name in "abcdefghijk"}
    folder(tmp_path, counts | {"train/b": 2, "train/k": 5, "test/a": 1})
    load(tmp_path, batch_size=2, validation=0)
    assert "Training images of a class: from b 2 to k 5\n" in capsys.readouterr().out


IMAGES = {
    "grey.png": encoded(pixels(mode="L")),
    "grey.jpg": encoded(pixels(mode="L"), "JPEG"),
    "grey.webp": encoded(pixels(mode="L"), "WEBP"),
    "transparent.png": encoded(pixels(mode="RGBA")),
    "transparent.webp": encoded(pixels(mode="RGBA"), "WEBP"),
    "grey and transparent.png": encoded(pixels(mode="LA")),
    "palette.png": encoded(pixels(mode="P")),
    "palette.gif": encoded(pixels(mode="P"), "GIF"),
    "black and white.png": encoded(pixels(mode="1")),
    "print.jpeg": encoded(pixels(mode="CMYK"), "JPEG"),
    "moving.gif": encoded(pixels(mode="P"), "GIF", save_all=True, append_images=[pixels(1, "P")]),
    "colour.webp": encoded(pixels(), "WEBP", quality=30),
    "wrongly named.png": encoded(pixels(), "WEBP"),
    "wrongly named.webp": encoded(pixels(), "JPEG"),
}


@pytest.mark.parametrize("name", IMAGES)
def test_images_of_any_kind_come_out_in_three_channels(tmp_path, name):
    write(tmp_path, f"train/a/{name}", IMAGES[name])
    source = Source(tmp_path)
    (image,), _ = source.into_memory("train", 0, 1)
    with Image.open(io.BytesIO(IMAGES[name])) as original:
        expected = np.asarray(original.convert("RGB")).astype(int)
    # JPEG decoders differ in the last bits.
    near = 4 if expected.shape == image.shape and b"JFIF" in IMAGES[name] else 0
    assert source.image_shape == image.shape == (*SIZE, 3)
    if name != "print.jpeg":  # Of CMYK, colour profiles make what they like.
        assert np.abs(image - expected).max() <= near


def test_every_format_has_been_tried():
    assert {f".{name.rpartition('.')[2]}" for name in IMAGES} == set(FORMATS)


PNG, JPEG = encoded(pixels()), encoded(pixels(), "JPEG")
BROKEN = {
    "truncated.png": PNG[:-30],
    "truncated.jpg": JPEG[: len(JPEG) // 2],
    "tail lost.jpg": JPEG[:-2],
    "truncated.webp": encoded(pixels(), "WEBP")[:-20],
    "truncated.gif": encoded(pixels(mode="P"), "GIF")[:-20],
    "empty.png": b"",
    "page.jpg": b"<html>404</html>",
    "flipped.png": PNG[:50] + bytes([PNG[50] ^ 255]) + PNG[51:],
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_named_and_left_out_on_request(tmp_path, capsys, name):
    folder(tmp_path, {"train/a": 4, "train/b": 4, "test/a": 1, "test/b": 1})
    file = write(tmp_path, f"train/a/{name}", BROKEN[name])
    with pytest.raises(UsageError) as raised:
        load(tmp_path, batch_size=2, validation=0)
    assert str(raised.value) == (
        f"Image {file} cannot be decoded, it is empty, damaged or something else: mend or remove "
        "it, or leave out all such files by skip_broken=True (--config.data.skip_broken=True)."
    )
    assert raised.value.__suppress_context__  # No traceback of TensorFlow's above the line.
    capsys.readouterr()
    data = load(tmp_path, batch_size=2, validation=0, skip_broken=True)
    assert data.sizes == {"train": 8, "validation": 0, "test": 2}
    assert f"Left out: 1 broken file ({file})" in capsys.readouterr().out


def test_a_link_to_nowhere_is_a_broken_file(tmp_path):
    folder(tmp_path, {"train/a": 4, "test/a": 1})
    (tmp_path / "train/a/gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(UsageError, match=r"gone\.png cannot be decoded"):
        load(tmp_path, batch_size=2, validation=0)
    assert load(tmp_path, batch_size=2, validation=0, skip_broken=True).sizes["train"] == 4


def test_the_right_file_is_named_wherever_it_is(tmp_path):
    names = ["0.png", "it's two.png", "três.png", "[4].png", "5.png"]
    for name in names:
        write(tmp_path, f"train/a/{name}")
    for name in names:
        file = tmp_path / "train/a" / name
        whole = file.read_bytes()
        file.write_bytes(PNG[:-30])
        with pytest.raises(UsageError) as raised:
            Source(tmp_path, image_size=SIZE).into_memory("train", 0, 5)
        assert str(raised.value).startswith(f"Image {file} cannot be decoded, ")
        file.write_bytes(whole)


def test_skipping_changes_nothing_where_nothing_is_broken(tmp_path):
    folder(tmp_path, {"train/a": 8, "train/b": 5, "test/a": 2, "test/b": 2})
    for one, other in zip(
        *(load(tmp_path, batch_size=2, skip_broken=skip).train for skip in (False, True))
    ):
        np.testing.assert_array_equal(one[0], other[0])


def test_a_broken_file_found_while_streaming_is_named_in_the_error(tmp_path):
    folder(tmp_path, {"train/a": 4, "test/a": 1})
    data = load(tmp_path, batch_size=4, validation=0, cache=False)
    write(tmp_path, "train/a/2.png", PNG[:-30])
    with pytest.raises(tf.errors.OpError, match=r"UsageError: Image \S*train/a/2\.png cannot be"):
        list(data.train)


@pytest.mark.parametrize(
    "arrange, message",
    [
        (lambda root: write(root, "train/a/0.tiff"), r"is no data set: .* Left out: 1 \.tiff\."),
        (lambda root: write(root, "cat/0.png"), r"split/class/image.* Left out: 1 in cat/\."),
        (
            lambda root: folder(root, {"train/a": 1, "val/a": 1, "Valid/a": 1}),
            "has Valid/ and val/, which both are the validation split: keep one",
        ),
        (
            lambda root: folder(root, {"train/a": 3}),
            "validation=1 and test=2 set aside 3 of the 3 examples: none is left",
        ),
        (lambda root: write(root, "train/a/0.png", b""), "None of the 1 images in .*train can be"),
    ],
)
def test_folders_that_cannot_be_used(tmp_path, arrange, message):
    arrange(tmp_path)
    with pytest.raises(UsageError, match=message) as raised:
        load(tmp_path, batch_size=1, validation=1, test=2, skip_broken="None of" in message)
    assert "\n" not in str(raised.value)


def test_links_are_followed_but_not_in_a_circle(tmp_path):
    folder(tmp_path / "elsewhere", {"many": 3})
    folder(tmp_path / "data", {"train/a": 2, "test/a": 1})
    (tmp_path / "data/train/b").symlink_to(tmp_path / "elsewhere/many")
    (tmp_path / "data/train/a/up").symlink_to(tmp_path / "data/train")
    images = ImageFolder(tmp_path / "data")
    assert images.class_names == ("a", "b") and images.size("train") == 5


def test_a_folder_is_found_by_its_bare_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "photos", {"train/a": 20, "test/a": 1})
    assert load("photos", batch_size=2).sizes["train"] == 18
    assert "Images in photos: train 18" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["photos", "photos:1.0.0", "a b"])
def test_a_name_of_nothing_shows_no_traceback_of_tfds(tmp_path, name):
    with pytest.raises(UsageError) as raised:
        load(name, data_dir=tmp_path)
    shown = "".join(traceback.format_exception(raised.value))
    assert "DatasetNotFoundError" not in shown and "During handling" not in shown
    assert "direct cause" not in shown


@pytest.mark.parametrize("cache", [True, False])
def test_raw_pixels_are_neither_scaled_nor_shifted(tmp_path, cache):
    folder(tmp_path, {"train/a": 6, "train/b": 6, "test/a": 3})
    data = load(tmp_path, batch_size=4, validation=4, normalize=False, cache=cache)
    for split in ("validation", "test"):
        images = [image for image, _ in getattr(data, split).unbatch().as_numpy_iterator()]
        raw = [image for image, _ in data.pixels(split).unbatch().as_numpy_iterator()]
        assert images[0].dtype == np.float32 and np.max(images) > 200
        np.testing.assert_array_equal(images, raw)
    trained = np.concatenate([image for image, _ in data.train.as_numpy_iterator()])
    raw = np.concatenate([image for image, _ in data.pixels("train").as_numpy_iterator()])
    assert {image.tobytes() for image in trained} == {
        image.astype("float32").tobytes() for image in raw
    }
    # Who undoes the normalisation gets the pixels in [0, 1].
    assert data.mean == (0.0,) * 3 and data.std == (1 / 255,) * 3


def test_raw_pixels_are_augmented_before(data_dir):
    settings = {"train_examples": 100, "batch_size": 50, "data_dir": data_dir, "mixup": 0.4}
    raw, normal = (load(normalize=normalize, **settings) for normalize in (False, True))
    for (images, target), (expected, same) in zip(raw.train, normal.train, strict=True):
        expected = 255 * (expected * normal.std + normal.mean)
        np.testing.assert_allclose(images, expected, atol=1e-3)
        np.testing.assert_array_equal(target, same)


def test_skip_broken_is_for_folders(data_dir):
    with pytest.raises(UsageError, match="skip_broken is for folders of images; 'digits' is none"):
        load(data_dir=data_dir, skip_broken=True)


def test_keras_trains_on_a_streamed_folder(tmp_path):
    folder(tmp_path, {"train/a": 20, "train/b": 20, "test/a": 2})
    data = load(tmp_path, batch_size=8, cache=False)
    model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(2)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    logs = model.fit(data.train, validation_data=data.validation, verbose=0).history
    assert np.isfinite(logs["loss"][0]) and np.isfinite(logs["val_loss"][0])


def photographs(root, format):
    """Writes images of several sizes; the one numbered i has i in its blue channel."""
    for split, count in (("train", 12), ("val", 4), ("test", 4)):
        for number in range(count):
            height, width = 40 + number, 60 - number
            image = np.empty((height, width, 3), np.uint8)
            image[..., 0] = np.linspace(0, 255, height)[:, None]
            image[..., 1] = np.linspace(0, 255, width)
            image[..., 2] = 20 * number
            data = encoded(Image.fromarray(image), format, quality=100)
            write(root, f"{split}/{'ab'[number % 2]}/{number}.{format.lower()}", data)
    return root


def resized_crops(root, **settings):
    arguments = {"batch_size": 4, "image_size": 16, "augment": ("resized_crop",), "verbose": False}
    return load(str(root), normalize=False, **{**arguments, **settings})


def by_number(dataset):
    """Returns `{the number of the image: image}`."""
    images = np.concatenate([images for images, *_ in dataset.as_numpy_iterator()])
    return {round(float(image[..., 2].mean() / 20)): image for image in images}


@pytest.mark.parametrize("format", ["PNG", pytest.param("JPEG", marks=pytest.mark.slow)])
def test_a_resized_crop_is_a_box_of_the_original_image(tmp_path, format):
    root = photographs(tmp_path, format)
    data = resized_crops(root)
    first, second = by_number(data.train), by_number(data.train)
    assert sorted(first) == sorted(second) == list(range(12))
    for number, image in first.items():
        # Rows and columns still rise evenly: a box that is stretched, neither squeezed nor mixed.
        rows, columns = image[..., 0].mean(1), image[..., 1].mean(0)
        assert np.all(np.diff(rows) >= -1) and np.all(np.diff(columns) >= -1)
        shares = (rows[-1] - rows[0]) / 255 * (columns[-1] - columns[0]) / 255
        assert 0.04 < shares <= 1
        assert np.abs(image - second[number]).max() > 2
    # The seed, the epoch and the image decide, not the batch that it falls into.
    again = resized_crops(root, batch_size=3)
    for number, image in by_number(again.train).items():
        np.testing.assert_array_equal(image, first[number])
    again.start_epoch(0)
    assert by_number(again.train).keys() == first.keys()
    assert np.any(by_number(resized_crops(root, seed=1).train)[3] != first[3])


def test_evaluation_sees_the_central_square_where_training_takes_resized_crops(tmp_path):
    data = resized_crops(photographs(tmp_path, "PNG"))
    image = by_number(data.test)[0]  # 40 x 60: the square has 35 pixels.
    for channel, extent in ((0, 40), (1, 60)):
        line = image[..., channel].mean(1 - channel)
        # Of the first and the last of 16 pixels the centre, in pixels of the image.
        centres = (extent - 35) // 2 + 35 * np.array([0.5, 15.5]) / 16 - 0.5
        np.testing.assert_allclose(line[[0, -1]], centres * 255 / (extent - 1), atol=3)
    pixels = by_number(data.pixels("train"))
    assert sorted(pixels) == list(range(12))


def test_views_of_resized_crops_take_turns(tmp_path):
    data = resized_crops(photographs(tmp_path, "PNG"), views=2, train_examples=8)
    first, second, third = (by_number(data.train) for _ in range(3))
    assert len(first) == 8
    for number, image in first.items():
        np.testing.assert_array_equal(image, third[number])
        assert np.any(image != second[number])


def test_a_broken_file_is_named_in_whatever_order(tmp_path):
    root = photographs(tmp_path, "PNG")
    broken = write(root, "train/a/broken.png", b"no image")
    data = resized_crops(root)
    with pytest.raises(tf.errors.InvalidArgumentError, match=str(broken)):
        list(data.train)


@pytest.mark.parametrize(
    "settings, line",
    [
        ({"cache": True}, "reads the original images in every epoch, .* cache must be 'auto'"),
        ({"augment": ("crop", "resized_crop")}, "'crop' or 'resized_crop', not both"),
    ],
)
def test_what_does_not_go_with_resized_crops(tmp_path, settings, line):
    with pytest.raises(UsageError, match=line):
        resized_crops(photographs(tmp_path, "PNG"), **settings)


def test_resized_crops_of_a_data_set_of_tfds(data_dir):
    data = load(batch_size=50, augment=("resized_crop",), data_dir=data_dir)
    images, labels = next(iter(data.train))
    assert images.shape == (50, 8, 8, 1) and labels.shape == (50,)
