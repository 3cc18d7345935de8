"""`digits`: scikit-learn's handwritten digits as a TFDS data set that needs no download."""

import contextlib
import io

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from sklearn.datasets import load_digits

TEST_IMAGES_PER_CLASS = 50


class Digits(tfds.core.GeneratorBasedBuilder):
    """The 1,797 real handwritten digits that come with scikit-learn, 8×8 grey pixels each.

    Split `train` has 1,297 images and `test` 500: the last 50 of every class. scikit-learn keeps
    the images in the order of their writers, so the writers of the two splits are different
    people for the most part, as they are in use.

    The grey levels, 0 to 16 in scikit-learn, are spread over 0 to 255.

    Once this module is imported, TFDS knows the data set by its name.

    Example:
    ```python
    import tensorflow_datasets as tfds
    import tfkd

    train = tfds.load("digits", split="train", as_supervised=True)
    ```

    References:
        - [Optical Recognition of Handwritten Digits](https://doi.org/10.24432/C50P49)
    """

    VERSION = tfds.core.Version("1.0.0")
    # TFDS looks for checksums of downloads beside the builder's code. There is none to look for.
    code_path = None

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            description="Handwritten digits of scikit-learn: 8x8 grey images, ten classes.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1)),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://scikit-learn.org/stable/datasets/toy_dataset.html",
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        labels = load_digits().target
        test = np.concatenate(
            [np.flatnonzero(labels == digit)[-TEST_IMAGES_PER_CLASS:] for digit in range(10)]
        )
        train = np.setdiff1d(np.arange(len(labels)), test)
        return {"train": self._generate_examples(train), "test": self._generate_examples(test)}

    def _generate_examples(self, indices):
        digits = load_digits()
        images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., np.newaxis]
        for index in indices.tolist():
            yield index, {"image": images[index], "label": int(digits.target[index])}

    def download_and_prepare(self, **kwargs):
        """Writes the data set in half a second, in silence but for one line in the log."""
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            super().download_and_prepare(**kwargs)
        logging.info("Prepared the data set digits in %s", self.data_dir)
