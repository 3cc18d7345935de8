import numpy as np
import pytest
import tensorflow as tf

from tfkd.data.augmentation import (
    Augmentation,
    blend,
    box,
    central_box,
    crop_padding,
    move,
    random_box,
)

SHAPE = (16, 24, 3)
COUNT = 4000


def random_images(count, shape=SHAPE, low=0):
    return np.random.default_rng(0).integers(low, 256, (count, *shape), np.uint8)


def draw(*args, epoch=0, seed=0, **kwargs):
    return Augmentation(*args, **kwargs).draw(seed, epoch, COUNT, SHAPE)


def test_padding_is_an_eighth_of_the_side():
    assert [crop_padding(size) for size in (32, 28, 8, 4)] == [4, 3, 1, 1]


def test_crop_and_flip_are_exact_to_the_pixel():
    images = random_images(300)
    draws = draw(("crop", "flip"))
    batch = {name: value[:300] for name, value in draws.items()}
    moved = Augmentation(("crop", "flip")).move(tf.constant(images), batch)
    assert moved.dtype == tf.uint8
    for i, image in enumerate(images):
        padded = np.pad(image, [(2, 2), (3, 3), (0, 0)])
        top, left = 2 + batch["row_shift"][i], 3 + batch["column_shift"][i]
        expected = padded[top : top + 16, left : left + 24]
        if batch["mirrored"][i]:
            expected = expected[:, ::-1]
        np.testing.assert_array_equal(moved[i], expected)


def test_crop_alone_flip_alone_and_nothing():
    images = random_images(50)
    flip = {"mirrored": np.arange(50) % 2 == 0}
    flipped = Augmentation(("flip",)).move(images, flip)
    np.testing.assert_array_equal(flipped[::2], images[::2, :, ::-1])
    np.testing.assert_array_equal(flipped[1::2], images[1::2])
    crop = {"row_shift": np.full(50, 1), "column_shift": np.full(50, -3)}
    cropped = Augmentation(("crop",)).move(images, crop)
    np.testing.assert_array_equal(cropped[:, :-1, 3:], images[:, 1:, :-3])
    assert not np.any(cropped[:, -1]) and not np.any(cropped[:, :, :3])
    np.testing.assert_array_equal(Augmentation().move(images, {}), images)


def test_every_shift_is_as_likely_as_any_other():
    draws = draw(("crop", "flip"))
    for name, reach in (("row_shift", 2), ("column_shift", 3)):
        values, counts = np.unique(draws[name], return_counts=True)
        np.testing.assert_array_equal(values, np.arange(-reach, reach + 1))
        expected = COUNT / len(values)
        assert np.sum((counts - expected) ** 2 / expected) < 25  # Chance alone: less than 1e-4.
    assert abs(draws["mirrored"].mean() - 0.5) < 0.04
    # The three are independent of one another.
    table = np.stack([draws[name] for name in ("row_shift", "column_shift", "mirrored")])
    assert np.all(np.abs(np.corrcoef(table) - np.eye(3)) < 0.07)


def test_draws_depend_on_seed_and_epoch_and_on_no_other_augmentation():
    crop = draw(("crop",))
    np.testing.assert_array_equal(
        crop["row_shift"], draw(("flip", "crop"), mixup=0.2, cutmix=1.0)["row_shift"]
    )
    np.testing.assert_array_equal(
        draw(mixup=0.2)["mixup"], draw(("crop",), mixup=0.2, cutmix=1.0)["mixup"]
    )
    for other in (draw(("crop",), epoch=1), draw(("crop",), seed=1)):
        assert np.mean(crop["row_shift"] == other["row_shift"]) < 0.3
    # Seed and epoch are no sum.
    assert np.any(draw(("crop",), epoch=1)["row_shift"] != draw(("crop",), seed=1)["row_shift"])


@pytest.mark.parametrize("alpha", [0.001, 0.2, 1.0, 4.0])
@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_shares_follow_the_beta_distribution(name, alpha):
    shares = draw(**{name: alpha})[name]
    assert shares.dtype == np.float32 and shares.min() >= 0 and shares.max() <= 1
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(shares.mean() - 0.5) < 5 * np.sqrt(variance / COUNT)
    np.testing.assert_allclose(shares.var(), variance, rtol=0.1)


def test_mixup_blends_images_and_labels_with_the_next_example():
    images = random_images(4).astype("float32")
    labels = np.eye(5, dtype="float32")[[0, 1, 1, 4]]
    shares = np.array([0.25, 1.0, 0.0, 0.75], "float32")
    mixed, mixed_labels = Augmentation(mixup=0.2).mix(
        tf.constant(images), tf.constant(labels), {"mixup": tf.constant(shares)}
    )
    np.testing.assert_allclose(mixed[0], 0.25 * images[0] + 0.75 * images[1])
    np.testing.assert_array_equal(mixed[1], images[1])
    np.testing.assert_array_equal(mixed[2], images[3])
    np.testing.assert_allclose(mixed[3], 0.75 * images[3] + 0.25 * images[0])
    expected = [[0.25, 0.75, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 0, 0, 1], [0.25, 0, 0, 0, 0.75]]
    np.testing.assert_allclose(mixed_labels, expected)


def published_box(share, row, column, height, width):
    """`rand_bbox` of the published CutMix code, with the centre given."""
    cut = np.sqrt(1.0 - share)
    cut_height, cut_width = int(height * cut), int(width * cut)
    return (
        np.clip(row - cut_height // 2, 0, height),
        np.clip(row + cut_height // 2, 0, height),
        np.clip(column - cut_width // 2, 0, width),
        np.clip(column + cut_width // 2, 0, width),
    )


def test_cutmix_boxes_are_those_of_the_published_code():
    draws = {name: value[:500] for name, value in draw(cutmix=1.0).items()}
    boxes = box(*(draws[name] for name in ("cutmix", "centre_row", "centre_column")), 16, 24)
    assert boxes.shape == (500, 16, 24, 1)
    for i in range(500):
        top, bottom, left, right = published_box(
            draws["cutmix"][i], draws["centre_row"][i], draws["centre_column"][i], 16, 24
        )
        expected = np.zeros((16, 24, 1), bool)
        expected[top:bottom, left:right] = True
        np.testing.assert_array_equal(boxes[i], expected)
    assert 0.2 < np.mean(boxes) < 0.5


def test_cutmix_pastes_pixels_and_mixes_labels_by_area():
    images = tf.constant(random_images(3).astype("float32"))
    labels = tf.constant(np.eye(3, dtype="float32"))
    draws = {
        "cutmix": tf.constant([0.75, 0.0, 1.0]),
        "centre_row": tf.constant([8, 0, 5]),
        "centre_column": tf.constant([12, 23, 5]),
    }
    mixed, mixed_labels = Augmentation(cutmix=1.0).mix(images, labels, draws)
    expected = images.numpy().copy()
    expected[0, 4:12, 6:18] = images[1, 4:12, 6:18]
    expected[1, 0:8, 11:24] = images[2, 0:8, 11:24]
    np.testing.assert_array_equal(mixed, expected)
    areas = np.array([8 * 12, 8 * 13, 0]) / (16 * 24)
    expected_labels = np.eye(3) * (1 - areas[:, None]) + np.roll(np.eye(3), 1, 1) * areas[:, None]
    np.testing.assert_allclose(mixed_labels, expected_labels, rtol=1e-6)


def test_with_both_every_example_takes_one_of_the_two():
    draws = draw(mixup=1.0, cutmix=1.0)
    assert abs(draws["chosen"].mean() - 0.5) < 0.04
    batch = {name: tf.constant(value[:200]) for name, value in draws.items()}
    images = tf.constant(random_images(200, low=1).astype("float32"))
    labels = tf.one_hot(tf.range(200), 200)
    both = Augmentation(mixup=1.0, cutmix=1.0).mix(images, labels, batch)
    mixup = Augmentation(mixup=1.0).mix(images, labels, batch)
    cutmix = Augmentation(cutmix=1.0).mix(images, labels, batch)
    chosen = draws["chosen"][:200]
    for part in range(2):
        np.testing.assert_array_equal(both[part][chosen], mixup[part][chosen])
        np.testing.assert_array_equal(both[part][~chosen], cutmix[part][~chosen])
    np.testing.assert_allclose(tf.reduce_sum(both[1], -1), np.ones(200), rtol=1e-6)


def test_a_batch_of_one_is_its_own_partner():
    images = random_images(1).astype("float32")
    np.testing.assert_array_equal(blend(images, np.array([0.25], "float32")), images)


def test_move_takes_images_of_any_type():
    images = random_images(2).astype("float32")
    moved = move(images, np.array([0, 1]), np.array([0, 0]), np.array([False, False]))
    np.testing.assert_array_equal(moved[0], images[0])
    np.testing.assert_array_equal(moved[1, :-1], images[1, 1:])


@pytest.mark.parametrize("size", [(375, 500), (40, 40)])
def test_random_boxes_have_the_published_areas_and_ratios(size):
    seeds = draw(("resized_crop",))["box"]
    boxes = tf.map_fn(
        lambda seed: random_box(tf.constant(size), seed), tf.constant(seeds[:500])
    ).numpy()
    top, left, height, width = boxes.T
    assert np.all((top >= 0) & (left >= 0) & (height > 0) & (width > 0))
    assert np.all((top + height <= size[0]) & (left + width <= size[1]))
    area, ratio = height * width / np.prod(size), width / height
    # Sides are whole pixels.
    assert 0.07 < area.min() < 0.15 and 0.8 < area.max() <= 1
    assert 0.70 < ratio.min() < 0.80 and 1.25 < ratio.max() < 1.42
    assert len(np.unique(boxes, axis=0)) > 480
    # The seed alone decides.
    np.testing.assert_array_equal(random_box(tf.constant(size), seeds[3]), boxes[3])


def test_the_box_of_evaluation_is_the_central_square():
    np.testing.assert_array_equal(central_box(tf.constant([256, 320])), [16, 48, 224, 224])
    np.testing.assert_array_equal(central_box(tf.constant([1, 3])), [0, 1, 1, 1])
