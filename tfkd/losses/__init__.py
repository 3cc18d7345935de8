"""Distillation losses, one per file."""

import keras

from tfkd.errors import UsageError, unknown
from tfkd.losses.activation_boundary import ActivationBoundary
from tfkd.losses.agreeing_teachers import AgreeingTeachers
from tfkd.losses.attention_transfer import AttentionTransfer
from tfkd.losses.class_attention_transfer import ClassAttentionTransfer
from tfkd.losses.confidence_weighted_features import ConfidenceWeightedFeatures
from tfkd.losses.confidence_weighted_teachers import ConfidenceWeightedTeachers
from tfkd.losses.contrastive_representation_distillation import (
    ContrastiveRepresentationDistillation,
)
from tfkd.losses.correlation_congruence import CorrelationCongruence
from tfkd.losses.decoupled_knowledge_distillation import DecoupledKnowledgeDistillation
from tfkd.losses.densely_guided_distillation import DenselyGuidedDistillation
from tfkd.losses.distillation_from_a_stronger_teacher import DistillationFromAStrongerTeacher
from tfkd.losses.distillation_loss import DistillationLoss, masked_mean
from tfkd.losses.entropy_weighted_teachers import EntropyWeightedTeachers
from tfkd.losses.factor_transfer import FactorTransfer
from tfkd.losses.fitnet import FitNet
from tfkd.losses.flow_of_solution_procedure import FlowOfSolutionProcedure
from tfkd.losses.hierarchical_context import hierarchical_context_loss
from tfkd.losses.instance_relationship_graph import InstanceRelationshipGraph
from tfkd.losses.keras_distillation_loss import KerasDistillationLoss
from tfkd.losses.knowledge_distillation import KnowledgeDistillation, kl_divergence
from tfkd.losses.knowledge_review import KnowledgeReview
from tfkd.losses.masked_generation import MaskedGeneration
from tfkd.losses.multi_level_logit_distillation import MultiLevelLogitDistillation
from tfkd.losses.neuron_selectivity_transfer import NeuronSelectivityTransfer
from tfkd.losses.normalized_knowledge_distillation import NormalizedKnowledgeDistillation
from tfkd.losses.overhaul_of_feature_distillation import OverhaulOfFeatureDistillation
from tfkd.losses.probabilistic_knowledge_transfer import ProbabilisticKnowledgeTransfer
from tfkd.losses.relational_knowledge_distillation import RelationalKnowledgeDistillation
from tfkd.losses.semantic_calibration import SemanticCalibration
from tfkd.losses.similarity_preserving import SimilarityPreserving
from tfkd.losses.softmax_regression_representation_learning import (
    SoftmaxRegressionRepresentationLearning,
)
from tfkd.losses.transformed_teacher_matching import TransformedTeacherMatching
from tfkd.losses.variational_information_distillation import VariationalInformationDistillation
from tfkd.losses.weighted_soft_labels import WeightedSoftLabels
from tfkd.losses.weighted_transformed_teacher_matching import WeightedTransformedTeacherMatching


def available():
    """Returns `{id: class}` of every loss, those that users have defined included."""
    found, classes = {}, [DistillationLoss]
    while classes:
        for cls in classes.pop().__subclasses__():
            classes.append(cls)
            # A loss's own subclass inherits its id and does not take its place.
            if cls.__dict__.get("id") is not None:
                found[cls.id] = cls
    return dict(sorted(found.items()))


def get(identifier, **arguments):
    """Makes a loss from its id, its config, or itself.

    Args:
        identifier: A `DistillationLoss`, an id such as `"kd"`, a loss class, or a
            `keras.distillation.DistillationLoss`, which is wrapped.
        **arguments: Constructor arguments, where an id or a class is given.

    Returns:
        A `DistillationLoss`.

    Raises:
        UsageError: If the id is unknown, an argument is not one of the loss's, or arguments are
            given beside a loss that is made already.

    Example:
    ```python
    loss = tfkd.losses.get("kd", temperature=2.0)
    ```
    """
    if isinstance(identifier, DistillationLoss):
        if arguments:
            given = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
            raise UsageError(
                f"Loss {identifier.name!r} is made already and takes no further arguments; "
                f"received {given}: give them with its id or class, as in "
                f"tfkd.losses.get({identifier.id!r}, {given})."
            )
        return identifier
    if isinstance(identifier, keras.distillation.DistillationLoss):
        return KerasDistillationLoss(identifier, **arguments)
    known = available()
    cls = identifier if isinstance(identifier, type) else known.get(identifier)
    if cls is None:
        raise unknown("loss", identifier, known)
    try:
        return cls(**arguments)
    except UsageError:
        raise
    except (TypeError, ValueError) as error:  # Keras rejects unknown arguments with either.
        raise UsageError(f"Loss {cls.id!r}: {error}.") from error


__all__ = [
    "ActivationBoundary",
    "AgreeingTeachers",
    "AttentionTransfer",
    "ClassAttentionTransfer",
    "ConfidenceWeightedFeatures",
    "ConfidenceWeightedTeachers",
    "ContrastiveRepresentationDistillation",
    "CorrelationCongruence",
    "DecoupledKnowledgeDistillation",
    "DenselyGuidedDistillation",
    "DistillationFromAStrongerTeacher",
    "DistillationLoss",
    "EntropyWeightedTeachers",
    "FactorTransfer",
    "FitNet",
    "FlowOfSolutionProcedure",
    "InstanceRelationshipGraph",
    "KerasDistillationLoss",
    "KnowledgeDistillation",
    "KnowledgeReview",
    "MaskedGeneration",
    "MultiLevelLogitDistillation",
    "NeuronSelectivityTransfer",
    "NormalizedKnowledgeDistillation",
    "OverhaulOfFeatureDistillation",
    "ProbabilisticKnowledgeTransfer",
    "RelationalKnowledgeDistillation",
    "SemanticCalibration",
    "SimilarityPreserving",
    "SoftmaxRegressionRepresentationLearning",
    "TransformedTeacherMatching",
    "VariationalInformationDistillation",
    "WeightedSoftLabels",
    "WeightedTransformedTeacherMatching",
    "available",
    "get",
    "hierarchical_context_loss",
    "kl_divergence",
    "masked_mean",
]
