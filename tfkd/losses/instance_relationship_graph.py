"""IRG: the graph of how samples relate, and its changes (Liu et al., 2019)."""

import keras
from keras import ops

from tfkd.errors import UsageError
from tfkd.losses.distillation_loss import DistillationLoss, masked_mean
from tfkd.losses.numerics import (
    average_channels,
    both_masks,
    flatten,
    keep_selected,
    match_sizes,
    scale_to_batch,
    selection,
)

#: The published floor of squared distances.
LEAST_DISTANCE = 1e-12


def edges(features, selected):
    """Squared distances of all pairs of selected samples, divided by the largest.

    Args:
        features: Float32 tensor `(batch, ...)`.
        selected: Float32 tensor `(batch,)` of zeros and ones. What involves another sample is 0.

    Returns:
        A tensor `(batch, batch)`.
    """
    features = keep_selected(flatten(features), selected)
    # Distances from inner products cancel where samples are far from the origin, and close.
    center = ops.sum(features, axis=0) / ops.maximum(ops.sum(selected), 1.0)
    features = (features - center) * selected[:, None]
    squares = ops.sum(ops.square(features), axis=-1)
    products = ops.matmul(features, ops.transpose(features))
    distances = ops.maximum(squares[None, :] + squares[:, None] - 2.0 * products, LEAST_DISTANCE)
    pairs = selected[:, None] * selected[None, :]
    return _over_largest(distances * pairs * (1.0 - ops.eye(ops.shape(selected)[0])))


def edge_distance(student_tap, teacher_tap, sample_mask=None):
    """Mean squared difference of the edges of two graphs.

    Args:
        student_tap: Float32 tensor `(batch, ...)`.
        teacher_tap: Float32 tensor `(batch, ...)`; the shapes may differ.
        sample_mask: Tensor `(batch,)` that selects samples, or None.

    Returns:
        A scalar.
    """
    selected = selection(sample_mask, student_tap)
    difference = edges(student_tap, selected) - edges(teacher_tap, selected)
    return scale_to_batch(ops.sum(ops.square(difference)), selected, power=2)


def transformations(first, second, selected):
    """Squared distance of each sample's features at two stages, divided by the largest.

    Args:
        first: Float32 map `(batch, height, width, channels)`.
        second: The same of a later stage. The larger map is pooled to the size of the smaller,
            and the channels of the wider one are averaged in neighbouring groups.
        selected: Float32 tensor `(batch,)` of zeros and ones; 0 for the other samples.

    Returns:
        A tensor `(batch,)`.
    """
    first, second = match_sizes(first, second)
    channels = min(first.shape[-1], second.shape[-1])
    difference = average_channels(first, channels) - average_channels(second, channels)
    distances = ops.sum(ops.square(keep_selected(flatten(difference), selected)), axis=-1)
    return _over_largest(ops.maximum(distances, LEAST_DISTANCE) * selected)


def transformation_distance(student_maps, teacher_maps, sample_mask=None):
    """Mean squared difference of the transformations of two networks.

    Args:
        student_maps: Two tensors, as `transformations` takes them.
        teacher_maps: Two tensors.
        sample_mask: Tensor `(batch,)` that selects samples, or None.

    Returns:
        A scalar.
    """
    selected = selection(sample_mask, student_maps[0])
    difference = transformations(*student_maps, selected) - transformations(*teacher_maps, selected)
    return ops.mean(ops.square(difference))


def _over_largest(distances):
    largest = ops.max(distances)
    return distances / ops.where(largest > 0, largest, ops.ones_like(largest))


@keras.saving.register_keras_serializable(package="tfkd")
class InstanceRelationshipGraph(DistillationLoss):
    """Compares the graphs of a batch: its vertices, edges, and their change between two stages.

    `0.1 · L_vertex + 5 · L_edge + 5 · L_transformation`, each a mean squared difference of
    student and teacher:

    - vertex: of the logits `(batch, classes)`;
    - edge: of the squared distances of all pairs of samples, divided by the largest of the batch;
      the mean over two maps and the pooled vector, all flattened;
    - transformation: of each sample's squared distance from the first map to the second, divided
      by the largest of the batch. There the larger map is average-pooled to the size of the
      smaller, and the channels of the wider one are averaged in neighbouring groups.

    Four spots, in this order: two maps `(batch, height, width, channels)`, a vector, and the
    logits. Student and teacher may differ in all shapes but that of the logits.

    Args:
        vertex_weight: Number. Defaults to 0.1, as in the Knowledge-Distillation-Zoo.
        edge_weight: Number. Defaults to 5, from the same.
        transformation_weight: Number. Defaults to 5, from the same.
        weight: Number. Defaults to 1.
        spots: Defaults to `"last_two_maps+pooled+logits"`.

    Raises:
        UsageError: When it is built, if there are not these four spots.

    Deviations: the official code is a Caffe model without arithmetic to read; this is that of the
    Knowledge-Distillation-Zoo, in its one-to-one mode. There the second map may be exactly twice
    as wide as the first, and not narrower; averages of other groups are ours. Edges are 0 where
    fewer than two samples are selected; the published code gives NaN. With one mask per spot, a
    transformation counts the samples that both maps select.

    Example:
    ```python
    loss = tfkd.losses.InstanceRelationshipGraph()
    value = loss(
        [student_map, later_student_map, student_vector, student_logits],
        [teacher_map, later_teacher_map, teacher_vector, teacher_logits],
    )
    ```

    References:
        - [Knowledge Distillation via Instance Relationship
          Graph](https://openaccess.thecvf.com/content_CVPR_2019/html/Liu_Knowledge_Distillation_via_Instance_Relationship_Graph_CVPR_2019_paper.html),
          section 3.
        - Form and weights:
          [Knowledge-Distillation-Zoo](https://github.com/AberHu/Knowledge-Distillation-Zoo),
          `kd_losses/irg.py`.
    """  # noqa: E501

    id = "irg"
    spots = "last_two_maps+pooled+logits"
    tap_rank = (2, 4)
    relational = True

    def __init__(
        self, vertex_weight=0.1, edge_weight=5.0, transformation_weight=5.0, weight=1.0, **kwargs
    ):
        super().__init__(weight=weight, **kwargs)
        self.vertex_weight = vertex_weight
        self.edge_weight = edge_weight
        self.transformation_weight = transformation_weight

    def build(self, student_taps_shape, teacher_taps_shape):
        """Checks the ranks and sizes of the four spots."""
        super().build(student_taps_shape, teacher_taps_shape)
        for side, shapes in (("student", student_taps_shape), ("teacher", teacher_taps_shape)):
            if [len(shape) for shape in self.shapes_taken(shapes)] != [4, 4, 2, 2]:
                raise UsageError(
                    f"Loss {self.name!r} needs four spots, two maps, a vector and the logits; the "
                    f"{side}'s have shapes {[tuple(shape) for shape in shapes]}."
                )
        self.check_classes(tuple(student_taps_shape[3]), tuple(teacher_taps_shape[3]))

    def call(self, student_taps, teacher_taps, labels=None, sample_mask=None, training=None):
        """Compares the four spots; see the class and `DistillationLoss.call()`."""
        masks = self.masks_of_spots(sample_mask, len(student_taps))
        teacher_taps = [ops.stop_gradient(tap) for tap in teacher_taps]
        logits = student_taps[3] - teacher_taps[3]
        logits = keep_selected(logits, selection(masks[3], logits))
        vertices = ops.mean(ops.square(logits), axis=-1)
        of_edges = [edge_distance(*spot) for spot in zip(student_taps, teacher_taps, masks[:3])]
        transformation = transformation_distance(
            student_taps[:2], teacher_taps[:2], both_masks(*masks[:2])
        )
        return (
            self.vertex_weight * masked_mean(vertices, masks[3])
            + self.edge_weight * sum(of_edges[1:], of_edges[0]) / 3.0
            + self.transformation_weight * transformation
        )

    def get_config(self):
        """Returns what `from_config()` needs to make an equal loss."""
        return {
            **super().get_config(),
            "vertex_weight": self.vertex_weight,
            "edge_weight": self.edge_weight,
            "transformation_weight": self.transformation_weight,
        }
