"""CRD: the same image among images of other classes (Tian et al., 2020)."""

import math

import keras
import numpy as np
from keras import ops

from tfkd import runtime
from tfkd.errors import UsageError, check_positive
from tfkd.layers.torch_defaults import linear
from tfkd.losses.distillation_loss import DistillationLoss, masked_mean
from tfkd.losses.numerics import flatten, normalize, selection

EPSILON = 1e-7

#: Up to so many samples of a batch whose size shows only when it runs, int32 must count all
#: products with the training set; of a larger set int64 does, which takes more time.
LARGEST_BATCH = 16384


def scores(anchors, bank, candidates, temperature=0.07):
    """How well each candidate of a memory bank fits its anchor.

    Args:
        anchors: Float32 tensor `(batch, size)` of unit vectors.
        bank: Float32 tensor `(examples, size)`.
        candidates: Integer tensor `(batch, 1 + negatives)`, rows of the bank.
        temperature: Positive number.

    Returns:
        A tensor `(batch, 1 + negatives)`, `exp(anchor · candidate / temperature)`.
    """
    # All products, then a choice: gathering the candidates themselves would take `size` times
    # the memory of their scores.
    products = ops.matmul(anchors, ops.transpose(bank))
    return ops.exp(choose(products, candidates) / temperature)


def choose(products, candidates):
    """Returns the candidates' columns of each row.

    Args:
        products: Tensor `(batch, examples)`.
        candidates: Integer tensor `(batch, chosen)`.

    Returns:
        A tensor `(batch, chosen)`.
    """
    batch, examples = ops.shape(products)[0], products.shape[1]
    if (products.shape[0] or LARGEST_BATCH) * examples < 2**31:
        first = ops.arange(batch, dtype="int32")[:, None] * examples
        return ops.take(ops.reshape(products, (-1,)), first + ops.cast(candidates, "int32"))
    # int32 does not count so many products. TensorFlow's own gradient of a choice does so, too.
    candidates = ops.cast(candidates, "int64")

    @ops.custom_gradient
    def of_rows(products):
        def gradient(upstream):
            rows = ops.arange(batch, dtype="int64")[:, None] + ops.zeros_like(candidates)
            positions = ops.stack([rows, candidates], axis=-1)
            shape = ops.cast(ops.stack([batch, examples]), "int64")
            return ops.scatter(positions, upstream, shape)

        return ops.take_along_axis(products, candidates, axis=1), gradient

    return of_rows(products)


def noise_contrastive_loss(probabilities, num_examples):
    """Loss of telling the positive from noise, per sample.

    Args:
        probabilities: Float32 tensor `(batch, 1 + negatives)`, scores divided by their
            normaliser, the positive first.
        num_examples: Integer, the size of the training set: noise has probability
            `1 / num_examples`.

    Returns:
        A tensor `(batch,)`.
    """
    positive, negative = probabilities[:, 0], probabilities[:, 1:]
    noise = negative.shape[1] / num_examples
    from_teacher = ops.log(positive / (positive + noise + EPSILON))
    from_noise = ops.log(noise / (negative + noise + EPSILON))
    return -(from_teacher + ops.sum(from_noise, axis=1))


def contrastive_loss(
    student_embedding,
    teacher_embedding,
    bank_student,
    bank_teacher,
    index,
    negatives,
    normalizers=(None, None),
    temperature=0.07,
    sample_mask=None,
):
    """Sum of the student-anchored and the teacher-anchored contrastive loss.

    Args:
        student_embedding: Float32 tensor `(batch, size)` of unit vectors.
        teacher_embedding: Float32 tensor `(batch, size)` of unit vectors.
        bank_student: Float32 tensor `(examples, size)`, earlier student embeddings.
        bank_teacher: Float32 tensor `(examples, size)`, earlier teacher embeddings.
        index: Integer tensor `(batch,)`, the samples' own rows in the banks.
        negatives: Integer tensor `(batch, negatives)`, rows of samples of other classes.
        normalizers: The normalisers of student-anchored and teacher-anchored scores. None, or a
            value that is not positive: the number of examples times the mean score of this
            batch, over the selected samples.
        temperature: Positive number.
        sample_mask: Tensor `(batch,)` that selects samples, or None.

    Returns:
        `(loss, normalizers)`: a scalar, and the two normalisers used, without gradient.
    """
    num_examples = bank_student.shape[0]
    index = ops.cast(index, "int32")
    candidates = ops.concatenate([index[:, None], ops.cast(negatives, "int32")], axis=1)
    selected = selection(sample_mask, student_embedding)
    loss, used = 0.0, []
    anchored = ((student_embedding, bank_teacher), (teacher_embedding, bank_student))
    for (anchors, bank), normalizer in zip(anchored, normalizers):
        score = scores(anchors, bank, candidates, temperature)
        mean = ops.sum(ops.mean(score, axis=1) * selected) / ops.maximum(ops.sum(selected), 1.0)
        # With none selected the mean is 0 and the loss is masked: any other value will do.
        estimate = num_examples * ops.where(mean > 0, mean, 1.0)
        if normalizer is not None:
            estimate = ops.where(normalizer > 0, normalizer, estimate)
        used.append(ops.stop_gradient(estimate))
        loss += masked_mean(noise_contrastive_loss(score / used[-1], num_examples), sample_mask)
    return loss, used


def moved_rows(bank, index, embeddings, selected, momentum=0.5):
    """Moves the selected samples' rows of a memory bank towards their embeddings.

    Args:
        bank: Float32 tensor `(examples, size)`.
        index: Integer tensor `(batch,)`, the samples' rows.
        embeddings: Float32 tensor `(batch, size)` of unit vectors.
        selected: Float32 tensor `(batch,)` of zeros and ones; other samples' rows stay.
        momentum: Number, the part of the old row that is kept.

    Returns:
        A tensor `(batch, size)`, the new rows at `index`: those that moved have L2 norm 1.
        Where an index occurs several times in the batch, its first selected sample counts, for
        all of them.
    """
    old = ops.take(bank, index, axis=0)
    new = normalize(momentum * old + (1.0 - momentum) * embeddings)
    # Every occurrence of an index writes the same row, so that their order does not matter.
    writes = ops.cast(index[:, None] == index[None, :], "float32") * selected[None, :]
    new = ops.take(new, ops.argmax(writes, axis=1), axis=0)
    return ops.where(ops.max(writes, axis=1)[:, None] > 0, new, old)


@keras.saving.register_keras_serializable(package="tfkd")
class ContrastiveRepresentationDistillation(DistillationLoss):
    """Noise-contrastive loss that tells an image's own teacher features from other images'.

    For each sample, with `P = exp(e_s · bank_t / temperature) / Z` over its own row of the bank
    (`P⁺`) and over `m` examples of other classes (`P⁻_k`), and noise `q = m / N`,

    `−ln(P⁺ / (P⁺ + q + 1e-7)) − Σ_k ln(q / (P⁻_k + q + 1e-7))`,

    the mean over samples, plus the same with student and teacher exchanged. `e_s` and `e_t` are
    dense layers with bias on the flattened taps, both trained with the student, divided by their
    L2 norms. `N` is the number of training examples.

    State: two memory banks `(N, embedding_size)` of earlier embeddings, which start uniform
    within `±1 / sqrt(embedding_size / 3)`; rows of selected samples move by `momentum` and are
    normalised again. The two `Z` are fixed at the first training call to `N` times the mean
    score. Banks and `Z` change only with `training=True`.

    Args:
        num_examples: Integer, the size of the training set. Defaults to what `set_examples()`
            says.
        negatives: Integer, the negatives of each sample. Defaults to 16384, as in the CRD
            benchmark and the spot-adaptive study; at most `num_examples`.
        temperature: Positive number. Defaults to 0.07, from the same.
        momentum: Number from 0 to 1. Defaults to 0.5, from the same.
        embedding_size: Integer. Defaults to 128, from the same.
        seed: Integer, the seed of the negatives, or None.
        weight: Number. Defaults to 0.8, from the same.
        spots: Defaults to `"pooled"`. Exactly one.

    `set_examples(labels)` must be called before training, and `call()` needs `indices`, the
    integers `(batch,)` that say which training examples the samples are.

    Raises:
        UsageError: If an argument is out of range, there is more than one spot, or the examples
            or indices are missing.

    Deviations: the published sampler draws negatives without replacement where there are enough.
    Here the other classes' examples are cut into as many equal parts as there are negatives, and
    one is drawn from each, which needs no sort of all examples: each is drawn equally often, and
    two draws can meet only at the border of two parts. More than `num_examples` negatives, which
    could only repeat, are not drawn.

    Example:
    ```python
    loss = tfkd.losses.ContrastiveRepresentationDistillation()
    loss.set_examples(training_labels)
    value = loss([student_vector], [teacher_vector], indices=indices, training=True)
    ```

    References:
        - [Contrastive Representation Distillation](https://arxiv.org/abs/1910.10699), section 3.
        - The memory: [Unsupervised Feature Learning via Non-Parametric Instance
          Discrimination](https://arxiv.org/abs/1805.01978), section 3.
    """

    id = "crd"
    spots = "pooled"
    relational = True
    needs_indices = True

    def __init__(
        self,
        num_examples=None,
        negatives=16384,
        temperature=0.07,
        momentum=0.5,
        embedding_size=128,
        seed=None,
        weight=0.8,
        **kwargs,
    ):
        super().__init__(weight=weight, **kwargs)
        check_positive("negatives", negatives)
        check_positive("temperature", temperature)
        if not 0 <= momentum <= 1:
            raise UsageError(f"momentum must be a number from 0 to 1; received {momentum!r}.")
        self.num_examples = num_examples
        self.negatives = negatives
        self.temperature = temperature
        self.momentum = momentum
        self.embedding_size = embedding_size
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self._examples = None

    def set_examples(self, labels):
        """Sets the classes of the training examples, from which negatives are drawn.

        Args:
            labels: Integer array `(num_examples,)`, the labels in the order of `indices`.

        Raises:
            UsageError: If it has another length than `num_examples`, or all are of one class.
        """
        labels = np.asarray(labels)
        if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
            raise UsageError(
                f"Loss {self.name!r} needs the labels of all training examples as integers of "
                f"shape (examples,); received {labels.dtype} of shape {labels.shape}."
            )
        if self.num_examples not in (None, len(labels)):
            raise UsageError(
                f"Loss {self.name!r} was made for {self.num_examples} training examples, and "
                f"received the labels of {len(labels)}."
            )
        _, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
        if len(counts) < 2:
            raise UsageError(
                f"Loss {self.name!r} needs examples of at least two classes to contrast; all "
                f"{len(labels)} labels are the same."
            )
        self.num_examples = len(labels)
        # Sorted by class, the examples of other classes are those before and those after one run.
        self._examples = {
            "sorted": np.argsort(classes, kind="stable").astype("int32"),
            "start_of_class": (np.cumsum(counts) - counts)[classes].astype("int32"),
            "size_of_class": counts[classes].astype("int32"),
        }

    def build(self, student_taps_shape, teacher_taps_shape):
        """Makes the embeddings, the memory banks and the normalisers."""
        if len(student_taps_shape) != 1:
            raise UsageError(
                f"Loss {self.name!r} distils at one spot; received {len(student_taps_shape)}."
            )
        if self.num_examples is None:
            raise UsageError(
                f"Loss {self.name!r} does not know the training set: call set_examples(labels) "
                "first, with the labels of all training examples, such as data.train_labels()."
            )
        super().build(student_taps_shape, teacher_taps_shape)

    def build_spot(self, spot, student_shape, teacher_shape):
        """Makes what `build()` announces, from the shapes of the one spot."""
        student_features, teacher_features = (
            math.prod(shape[1:]) for shape in (student_shape, teacher_shape)
        )
        self.student_embedding = linear(student_features, self.embedding_size, self.dtype_policy)
        self.teacher_embedding = linear(teacher_features, self.embedding_size, self.dtype_policy)
        limit = 1 / math.sqrt(self.embedding_size / 3)
        for network in ("student", "teacher"):
            bank = self.add_weight(
                shape=(self.num_examples, self.embedding_size),
                initializer=keras.initializers.RandomUniform(-limit, limit),
                trainable=False,
                # Every replica sees the global batch and makes the same update.
                aggregation="only_first_replica",
                name=f"memory_{network}",
            )
            normalizer = self.add_weight(
                shape=(),
                initializer="zeros",
                trainable=False,
                aggregation="only_first_replica",
                name=f"normalizer_{network}",
            )
            setattr(self, f"memory_{network}", bank)
            setattr(self, f"normalizer_{network}", normalizer)

    def call(
        self,
        student_taps,
        teacher_taps,
        labels=None,
        sample_mask=None,
        training=None,
        indices=None,
    ):
        """Compares the taps of the one spot; see the class and `DistillationLoss.call()`.

        Args:
            student_taps: List of one tensor `(batch, ...)`.
            teacher_taps: List of one tensor `(batch, ...)`.
            labels: Ignored: the classes come from `set_examples()`.
            sample_mask: As in `DistillationLoss.call()`.
            training: Whether to update the memory banks.
            indices: Integer tensor `(batch,)`, the samples' positions in the training set.

        Returns:
            A float32 scalar.
        """
        if self._examples is None or indices is None:
            missing = "indices=" if self._examples else "set_examples(labels) before training"
            raise UsageError(f"Loss {self.name!r} needs {missing}, to find its negatives.")
        (mask,) = self.masks_of_spots(sample_mask, 1)
        indices = ops.cast(indices, "int32")
        student = normalize(self.student_embedding(flatten(student_taps[0])))
        teacher_tap = ops.stop_gradient(flatten(teacher_taps[0]))
        teacher = normalize(self.teacher_embedding(teacher_tap))
        memory_student = ops.convert_to_tensor(self.memory_student)
        memory_teacher = ops.convert_to_tensor(self.memory_teacher)
        loss, normalizers = contrastive_loss(
            student,
            teacher,
            memory_student,
            memory_teacher,
            indices,
            self.draw_negatives(indices),
            (self.normalizer_student, self.normalizer_teacher),
            self.temperature,
            mask,
        )
        if training:
            selected = selection(mask, student)
            # A batch without a selected sample must not fix the normalisers.
            any_selected = ops.max(selected) > 0
            for variable, value in zip(
                (self.normalizer_student, self.normalizer_teacher), normalizers
            ):
                variable.assign(ops.where(any_selected, value, variable))
            for variable, bank, embeddings in (
                (self.memory_student, memory_student, student),
                (self.memory_teacher, memory_teacher, teacher),
            ):
                embeddings = ops.stop_gradient(embeddings)
                rows = moved_rows(bank, indices, embeddings, selected, self.momentum)
                runtime.assign_rows(variable, indices, rows)
        return loss

    def draw_negatives(self, indices):
        """Draws examples of other classes.

        Args:
            indices: Integer tensor `(batch,)`, positions in the training set.

        Returns:
            An integer tensor `(batch, negatives)`, positions in the training set.
        """
        count = min(self.negatives, self.num_examples)
        start = ops.take(self._examples["start_of_class"], indices)[:, None]
        size = ops.take(self._examples["size_of_class"], indices)[:, None]
        others = self.num_examples - size
        draws = keras.random.uniform((ops.shape(indices)[0], count), seed=self.seed_generator)
        parts = (ops.arange(count, dtype="float32") + draws) / count
        position = ops.cast(parts * ops.cast(others, "float32"), "int32")
        # Rounding can reach the upper end, which is excluded.
        position = ops.minimum(position, others - 1)
        position = ops.where(position < start, position, position + size)
        return ops.take(self._examples["sorted"], position)

    def get_config(self):
        """Returns what `from_config()` needs to make an equal loss."""
        return {
            **super().get_config(),
            "num_examples": self.num_examples,
            "negatives": self.negatives,
            "temperature": self.temperature,
            "momentum": self.momentum,
            "embedding_size": self.embedding_size,
            "seed": self.seed,
        }
