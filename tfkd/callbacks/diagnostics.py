"""Diagnostics: compares student and teacher during training."""

import contextlib
import heapq
import pathlib
import time

import keras
import numpy as np
import tensorflow as tf

from tfkd import files, runtime, taps
from tfkd.distillers.distiller import Distiller
from tfkd.errors import UsageError, check_positive_integer
from tfkd.inspection import diagnostics
from tfkd.inspection.gradients import PartGradients
from tfkd.losses.label_losses import CATEGORICAL, kind_of

#: The largest number of images per batch, within which CKA compares them.
_BATCH = 128


class Diagnostics(keras.callbacks.Callback):
    """Compares student and teacher on a fixed subset of validation data, and logs the results.

    It changes no variable, optimizer, metric or random state. Its values are added to the logs of
    the epoch, so it must precede callbacks that write them, such as
    `keras.callbacks.TensorBoard`. Methods without a teacher get the values that need none.
    docs/diagnostics.md explains the values.

    Args:
        dataset: `tf.data.Dataset`, or another iterable, of batches `(inputs, labels)` as the
            student takes them: validation data; or those of `Data.with_teacher_images`. It is
            read once.
        examples: Integer, the number of its images to draw.
        every: Integer, the number of epochs between measurements; the last is always measured.
        gradient_examples: Integer, the number of drawn images in the batch for gradients.
        gradient_data: Iterable of batches whose first one is the batch for gradients instead; for
            losses that need the positions of the images in the training set. Without it,
            gradients of a distiller with such a loss are not measured. Gradients are those of the
            parts that `compute_losses` returns; a method with only a `train_step` has none.
        seed: Integer, the seed of the draw.
        folder: Path of a directory for `diagnostics.png`, written at the end of training; None
            for no picture.

    Raises:
        UsageError: If an argument is out of range, or the data holds no such batches.

    Example:
    ```python
    look = tfkd.callbacks.Diagnostics(data.validation, folder="runs/kd")
    distiller.fit(data.train, validation_data=data.validation, epochs=20, callbacks=[look])
    print(f"{look.seconds:.1f} s, {look.share:.1%} of training")
    ```

    Logs: `agreement_top1`, `agreement_top5`, `teacher_kl`, `entropy`, `teacher_entropy`,
    `calibration_error`, `teacher_calibration_error` (all of classes of which one is right; those
    with the teacher where it has the same); `peer_agreement` where several classifiers
    learn together; `gradient_norm`, and with two parts or more `gradient_share/{part}` and
    `gradient_cosine/{part}`; `cka/{tap of the student}`; `diagnostics_seconds`, the run time,
    in the first epoch with compilation.

    References:
        - See `tfkd.inspection.diagnostics`.
    """

    def __init__(
        self,
        dataset,
        examples=512,
        every=1,
        gradient_examples=64,
        gradient_data=None,
        seed=0,
        folder=None,
    ):
        super().__init__()
        for name, value in (
            ("examples", examples),
            ("every", every),
            ("gradient_examples", gradient_examples),
        ):
            check_positive_integer(name, value)
        self.dataset = dataset
        self.examples, self.every, self.seed = examples, every, seed
        self.gradient_examples, self.gradient_data = gradient_examples, gradient_data
        self.folder = None if folder is None else pathlib.Path(folder)
        #: The run time in this `fit`, and its share of the whole.
        self.seconds, self.share = 0.0, None
        self._subset = self._measurement = None
        self._history = []
        self._began = None

    def on_train_begin(self, logs=None):
        """Resets the measurements."""
        self._measurement = None
        self._history = []
        self.seconds, self.share = 0.0, None
        self._began = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        """Measures, and adds the values to the logs."""
        number = epoch + 1
        found = {}
        if number % self.every == 0 or number == self.params.get("epochs"):
            started = time.perf_counter()
            found = self._measure()
            found["diagnostics_seconds"] = time.perf_counter() - started
            self.seconds += found["diagnostics_seconds"]
            logs.update(found)
        self._history.append(found)

    def on_train_end(self, logs=None):
        """Prints the run time, and draws."""
        self.share = self.seconds / (time.perf_counter() - self._began)
        if self.params.get("verbose"):
            print(f"diagnostics took {self.seconds:.1f} s, {self.share:.1%} of training")
        if self.folder is not None and any(self._history):
            path = self.folder / "diagnostics.png"
            files.write(path, lambda path: diagnostics.picture(path, self._history))

    def _measure(self):
        if self._measurement is None:
            if self._subset is None:
                self._subset = draw(self.dataset, self.examples, self.seed)
            self._measurement = _Measurement(self.model, *self._subset, self._gradient_batch())
        return self._measurement.measure()

    def _gradient_batch(self):
        """Returns the batch for gradients; None where the distiller needs another one."""
        first, data = slice(self.gradient_examples), self._subset
        if type(self.model).compute_losses is Distiller.compute_losses:
            # A method with only a train_step does not name its parts.
            return None
        if self.gradient_data is not None:
            data = tuple(next(iter(self.gradient_data)))
        elif any(loss.needs_indices for loss, _ in self.model.distillation_parts()):
            return None
        return tf.nest.map_structure(lambda part: tf.convert_to_tensor(part)[first], data)


class _Measurement:
    """Measures one distiller, always on the same images."""

    def __init__(self, distiller, inputs, labels, gradient_batch):
        self.distiller = distiller
        seen = inputs
        if isinstance(labels, dict):
            seen, labels = labels["teacher_images"], labels["label"]
        # Values of a softmax are meaningless for other outputs.
        self.by_class = kind_of(distiller.label_loss) in (None, CATEGORICAL)
        self.labels = labels.argmax(-1) if labels.ndim == 2 and labels.shape[1] > 1 else labels
        self.labels = self.labels.reshape(-1)
        self.batches = _split(inputs)
        # The estimate needs four images.
        compares = distiller.teacher is not None and min(map(len, self.batches)) >= 4
        self.pairs = _pairs(distiller.student, distiller.teacher) if compares else []
        self.of_student = _reader(distiller.student, [student for student, _ in self.pairs])
        learners = distiller.learners() if distiller.peer_names else {}
        self.of_peers = [_reader(learners[name]) for name in distiller.peer_names]
        self.gradients = None
        if gradient_batch is not None:
            self.gradients = PartGradients(distiller, gradient_batch)
        self.teacher = None
        if distiller.teacher is not None:
            # The teacher does not change: one pass is enough.
            of_teacher = _reader(distiller.teacher, [teacher for _, teacher in self.pairs])
            self.teacher = _read(of_teacher, map(distiller.teacher_inputs, _split(seen)))

    def measure(self):
        """Returns `{name of the log: number}`."""
        logits, similarities = _read(self.of_student, self.batches)
        found = {}
        if self.by_class:
            found["entropy"] = diagnostics.entropy(logits)
            found["calibration_error"] = diagnostics.calibration_error(logits, self.labels)
        if self.teacher is not None:
            found |= self._compare(logits, similarities)
        if self.of_peers:
            shares = [
                diagnostics.agreement(_read(peer, self.batches)[0], logits)
                for peer in self.of_peers
            ]
            found["peer_agreement"] = float(np.mean(shares))
        if self.gradients is not None:
            found |= self._contributions()
        return found

    def _compare(self, logits, similarities):
        """Returns the comparison of student and teacher."""
        of_teacher, theirs = self.teacher
        found = {}
        if self.by_class and of_teacher.shape == logits.shape:
            found["agreement_top1"] = diagnostics.agreement(of_teacher, logits)
            if logits.shape[-1] > 5:
                found["agreement_top5"] = diagnostics.agreement(of_teacher, logits, top=5)
            found |= {
                "teacher_kl": diagnostics.divergence(of_teacher, logits),
                "teacher_entropy": diagnostics.entropy(of_teacher),
                "teacher_calibration_error": diagnostics.calibration_error(of_teacher, self.labels),
            }
        for (tap, _), ours, its in zip(self.pairs, similarities, theirs):
            found[f"cka/{tap}"] = diagnostics.centered_alignment(ours, its)
        return found

    def _contributions(self):
        """Returns the contribution of each part of the loss to the student's gradient."""
        parts, products, weights = self.gradients.measure()
        if not np.all(np.isfinite(products)):
            # An overflow of float16; training skips such steps too.
            return {}
        label = parts.index("student_loss") if "student_loss" in parts else None
        norm, shares, cosines = diagnostics.shares_and_cosines(products, weights, label)
        found = {"gradient_norm": norm}
        if len(parts) > 1:
            found |= {f"gradient_share/{part}": float(x) for part, x in zip(parts, shares)}
        for position, part in enumerate(parts):
            if label not in (None, position):
                found[f"gradient_cosine/{part}"] = float(cosines[position])
        return found


def _split(inputs):
    """Returns an array as a list of batches of equal size, within one image."""
    parts = -(-len(inputs) // _BATCH)
    return [tf.convert_to_tensor(part) for part in np.array_split(inputs, parts)]


def draw(dataset, examples, seed=0):
    """Draws some images of a data set at random; the same ones where its order is the same.

    Args:
        dataset: Iterable of batches `(inputs, labels)`; further parts of a batch are ignored.
        examples: Integer, the number of images; all where there are fewer.
        seed: Integer.

    Returns:
        The tuple of arrays `(inputs, labels)`; where the data has images for the teacher, labels
        are `{"label": labels, "teacher_images": images}`.

    Raises:
        UsageError: If it holds no such batches, or has no end.
    """
    endless = tf.data.INFINITE_CARDINALITY
    if isinstance(dataset, tf.data.Dataset) and int(dataset.cardinality()) == endless:
        raise UsageError("Diagnostics needs a data set that ends: dataset.take(batches).")
    generator, seen, chosen = np.random.default_rng(seed), 0, []
    for data in dataset:
        if not isinstance(data, (tuple, list)) or not 2 <= len(data) <= 3:
            raise UsageError(
                "Diagnostics needs batches (inputs, labels), such as those of a tf.data.Dataset; "
                f"received {type(data).__name__}."
            )
        inputs, labels = data[:2]
        if isinstance(labels, dict) and "teacher_images" in labels:
            labels = {name: labels[name] for name in ("label", "teacher_images")}
        elif isinstance(labels, dict):
            labels = labels["label"]
        batch = tf.nest.map_structure(np.asarray, (inputs, labels))
        # Every image gets a number, and those with the largest ones stay.
        for row, number in enumerate(generator.random(len(inputs))):
            one = (number, seen + row)
            if len(chosen) == examples and one <= chosen[0][:2]:
                continue
            image = tf.nest.map_structure(lambda part, row=row: part[row].copy(), batch)
            change = heapq.heappush if len(chosen) < examples else heapq.heapreplace
            change(chosen, (*one, image))
        seen += len(inputs)
    if not chosen:
        raise UsageError("Diagnostics needs at least one batch; the data set has none.")
    chosen.sort(key=lambda one: one[1])
    return tf.nest.map_structure(lambda *rows: np.stack(rows), *(one[2] for one in chosen))


def _pairs(student, teacher):
    """Returns `[(student tap, teacher tap), ...]`: stages, pooled vector and logits.

    Of a model that has no such places, or does not show them, those are left out.
    """
    pairs = []
    with contextlib.suppress(UsageError):
        pairs += taps.suggest_pairs(student, teacher)
    with contextlib.suppress(UsageError):
        pairs += zip(*(taps.at_spots(model, "pooled") for model in (student, teacher)))
    return [*pairs, (taps.LOGITS, taps.LOGITS)]


def _reader(model, names=()):
    """Returns a compiled function of inputs: logits, and similarities at some taps."""
    observe = taps.extractor(model, names)

    def read(inputs):
        observed = observe(inputs, training=False)
        found = [diagnostics.similarities(observed[name]) for name in names]
        return tf.cast(observed[taps.LOGITS], "float32"), found

    return tf.function(
        read, jit_compile=runtime.jit_compile(), reduce_retracing=True, autograph=False
    )


def _read(reader, batches):
    """Returns the logits of all batches, and for each tap a list of similarities per batch."""
    logits, similarities = zip(*(reader(inputs) for inputs in batches))
    similarities = [[matrix.numpy() for matrix in of_tap] for of_tap in zip(*similarities)]
    return np.concatenate([part.numpy() for part in logits]), similarities
