"""Augmentation of whole batches by random numbers that were drawn beforehand.

`Augmentation.draw` makes the random numbers of one epoch: one row per training example, a pure
function of the seed, the epoch and the example. What is then done to an image depends neither on
the batch that it falls into nor on what was done to any other, save for its partner in mixup and
cutmix.
"""

import functools

import numpy as np
import tensorflow as tf

GEOMETRIC = ("crop", "flip", "resized_crop")

#: Random resized crops: the share of the image's area, the ratio of width to height, and the share
#: of the shorter side that the central square of evaluation has, 224 of 256 pixels.
AREA = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)
CENTRAL_SHARE = 224 / 256

# Everything random has a stream of its own: switching one augmentation on changes no other.
STREAMS = (
    "order",
    "row_shift",
    "column_shift",
    "mirrored",
    "mixup",
    "cutmix",
    "centre_row",
    "centre_column",
    "chosen",
    "box",
)


def generator(seed, epoch, stream, peer=0):
    """Returns the generator of one stream of random numbers.

    Args:
        seed: Non-negative integer.
        epoch: Non-negative integer.
        stream: String, one of `STREAMS`.
        peer: Integer, which of several students sees the images.

    Returns:
        A `numpy.random.Generator`.
    """
    return np.random.default_rng([seed, epoch, STREAMS.index(stream), *([peer] if peer else [])])


def crop_padding(size):
    """Returns how many pixels a side of `size` pixels is padded by before the crop.

    An eighth, as in the usual protocols: 4 pixels for 32, 1 for 8.
    """
    return max(1, size // 8)


def move(images, row_shifts, column_shifts, mirrored):
    """Shifts images by whole pixels, then mirrors some of them left to right.

    To pad by `padding` black pixels and crop at `(top, left)` of the padded image is to shift by
    `(top - padding, left - padding)`.

    Args:
        images: Tensor `(batch, height, width, channels)` of any type.
        row_shifts: Int32 tensor `(batch,)`, in pixels: row `r` of the result is row
            `r + row_shift` of the image, or black where there is none.
        column_shifts: Int32 tensor `(batch,)`, in pixels, likewise.
        mirrored: Boolean tensor `(batch,)`: which of the shifted images are mirrored.

    Returns:
        A tensor of the shape and type of `images`.
    """
    _, height, width, channels = images.shape
    padding = [crop_padding(height), crop_padding(width)]
    padded = tf.pad(images, [[0, 0], [padding[0]] * 2, [padding[1]] * 2, [0, 0]])
    padded_height, padded_width = height + 2 * padding[0], width + 2 * padding[1]

    columns = tf.range(width)[tf.newaxis]
    columns = tf.where(mirrored[:, tf.newaxis], width - 1 - columns, columns)
    columns = columns + column_shifts[:, tf.newaxis] + padding[1]
    rows = tf.range(height)[tf.newaxis] + row_shifts[:, tf.newaxis] + padding[0]
    examples = tf.range(tf.shape(images)[0])[:, tf.newaxis, tf.newaxis]
    # One gather of whole pixels takes two thirds of the time of ImageProjectiveTransformV3.
    pixels = (examples * padded_height + rows[:, :, tf.newaxis]) * padded_width
    pixels = pixels + columns[:, tf.newaxis, :]
    return tf.gather(tf.reshape(padded, [-1, channels]), pixels)


def random_box(size, seed):
    """Draws the box of a random resized crop.

    Args:
        size: Int32 tensor `(2,)`, height and width of the image.
        seed: Int32 tensor `(2,)`, which decides the box.

    Returns:
        An int32 tensor `(4,)`: top, left, height and width, of an area in `AREA` and a ratio in
        `RATIO`; the whole image where ten draws do not fit into it.

    References:
        - [Going deeper with convolutions](https://arxiv.org/abs/1409.4842), section 6.
    """
    begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
        tf.concat([size, [3]], 0),
        tf.zeros((0, 0, 4)),
        seed,
        min_object_covered=0.0,
        aspect_ratio_range=RATIO,
        area_range=AREA,
        max_attempts=10,
        use_image_if_no_bounding_boxes=True,
    )
    return tf.concat([begin[:2], extent[:2]], 0)


def central_box(size):
    """Returns the central square that is evaluated where training takes random resized crops.

    Args:
        size: Int32 tensor `(2,)`, height and width of the image.

    Returns:
        An int32 tensor `(4,)`: top, left, height and width.
    """
    side = tf.cast(tf.reduce_min(size), tf.float32) * CENTRAL_SHARE
    side = tf.maximum(tf.cast(tf.round(side), tf.int32), 1)
    return tf.concat([(size - side) // 2, [side, side]], 0)


def box(own_shares, centre_rows, centre_columns, height, width):
    """Lays the boxes that cutmix cuts out, as its published code does.

    Args:
        own_shares: Float tensor `(batch,)` in [0, 1]: how much of each image should stay.
        centre_rows: Int32 tensor `(batch,)` in [0, height): the boxes' centres.
        centre_columns: Int32 tensor `(batch,)` in [0, width).
        height: Integer, of the images.
        width: Integer, of the images.

    Returns:
        A boolean tensor `(batch, height, width, 1)`, true inside the box. The part of a box that
        sticks out of the image is lost.
    """

    def inside(centres, size):
        half = tf.cast(tf.cast(size, own_shares.dtype) * tf.sqrt(1 - own_shares), tf.int32) // 2
        positions = tf.range(size)[tf.newaxis]
        first, last = (centres - half)[:, tf.newaxis], (centres + half)[:, tf.newaxis]
        return (positions >= first) & (positions < last)

    rows, columns = inside(centre_rows, height), inside(centre_columns, width)
    return (rows[:, :, tf.newaxis] & columns[:, tf.newaxis, :])[..., tf.newaxis]


def blend(values, own):
    """Mixes every example of a batch with the next one, and the last with the first.

    Args:
        values: Float tensor `(batch, ...)`, images or one-hot labels.
        own: Float tensor in [0, 1], of a shape that broadcasts to that of `values`: the share of
            each example's own value in the mixture.

    Returns:
        A tensor like `values`.
    """
    return own * values + (1 - own) * tf.roll(values, -1, axis=0)


class Augmentation:
    """The random changes to the training images.

    Args:
        names: Iterable of `"crop"` (a random shift of up to `crop_padding` pixels each way, black
            where the image ends), `"flip"` (left to right, half of the time) and `"resized_crop"`
            (`random_box`, cut out when the image is decoded).
        mixup: Number, the alpha of mixup's Beta(alpha, alpha), or 0 for none.
        cutmix: Number, the alpha of cutmix, or 0 for none. With both, each example takes one of
            the two, with equal chances.

    References:
        - [mixup](https://arxiv.org/abs/1710.09412)
        - [CutMix](https://arxiv.org/abs/1905.04899)
    """

    def __init__(self, names=(), mixup=0.0, cutmix=0.0):
        self.names = tuple(names)
        self.mixup = mixup
        self.cutmix = cutmix

    def draw(self, seed, epoch, count, image_shape, peer=0):
        """Draws the random numbers of one epoch.

        Args:
            seed: Non-negative integer.
            epoch: Non-negative integer.
            count: Integer, how many training examples there are.
            image_shape: Tuple `(height, width, channels)`.
            peer: Integer, which of several students sees the images.

        Returns:
            A dict of arrays `(count,)`, or `(count, 2)` of `"box"`; empty if nothing is random.
        """
        height, width, _ = image_shape
        of = functools.partial(generator, seed, epoch, peer=peer)

        def integers(stream, low, high):
            return of(stream).integers(low, high, count, np.int32)

        def half(stream):
            return of(stream).random(count, np.float32) < 0.5

        def beta(stream, alpha):
            return of(stream).beta(alpha, alpha, count).astype(np.float32)

        draws = {}
        if "crop" in self.names:
            for stream, size in (("row_shift", height), ("column_shift", width)):
                reach = crop_padding(size)
                draws[stream] = integers(stream, -reach, reach + 1)
        if "flip" in self.names:
            draws["mirrored"] = half("mirrored")
        if "resized_crop" in self.names:
            draws["box"] = of("box").integers(
                np.iinfo(np.int32).max, size=(count, 2), dtype=np.int32
            )
        if self.mixup:
            draws["mixup"] = beta("mixup", self.mixup)
        if self.cutmix:
            draws["cutmix"] = beta("cutmix", self.cutmix)
            draws["centre_row"] = integers("centre_row", 0, height)
            draws["centre_column"] = integers("centre_column", 0, width)
        if self.mixup and self.cutmix:
            draws["chosen"] = half("chosen")
        return draws

    def move(self, images, draws):
        """Crops and flips a batch.

        Args:
            images: Tensor `(batch, height, width, channels)`, pixels before normalisation.
            draws: The batch's rows of what `draw` returned.

        Returns:
            A tensor like `images`.
        """
        mirrored = draws.get("mirrored")
        if "crop" in self.names:
            if mirrored is None:
                mirrored = tf.zeros(tf.shape(images)[:1], tf.bool)
            return move(images, draws["row_shift"], draws["column_shift"], mirrored)
        if mirrored is not None:
            return tf.where(mirrored[:, None, None, None], images[:, :, ::-1], images)
        return images

    def mix(self, images, labels, draws):
        """Applies mixup and cutmix to a batch.

        Args:
            images: Float tensor `(batch, height, width, channels)`.
            labels: Float tensor `(batch, classes)`, one-hot, where there is mixup or cutmix;
                any labels otherwise.
            draws: The batch's rows of what `draw` returned.

        Returns:
            The images and labels, mixed.
        """
        if not (self.mixup or self.cutmix):
            return images, labels
        if self.mixup:
            own_pixels = draws["mixup"][:, tf.newaxis, tf.newaxis, tf.newaxis]
            own_label = draws["mixup"]
        if self.cutmix:
            cut = box(
                draws["cutmix"], draws["centre_row"], draws["centre_column"], *images.shape[1:3]
            )
            outside = 1 - tf.cast(cut, images.dtype)
            own_area = tf.reduce_mean(outside, axis=[1, 2, 3])
            if self.mixup:
                chosen = draws["chosen"]
                own_label = tf.where(chosen, own_label, own_area)
                chosen = chosen[:, tf.newaxis, tf.newaxis, tf.newaxis]
                own_pixels = tf.where(chosen, own_pixels, outside)
            else:
                own_pixels, own_label = outside, own_area
        return blend(images, own_pixels), blend(labels, own_label[:, tf.newaxis])
