"""Every loss gives the update of one device on several, relational ones included."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny

import tfkd

# What of a group would hide in the sum shows in the logs, which name every loss.
GROUPS = {
    "of logits": ["kd", "dkd"],
    "of maps": ["at", "fitnet", "vid", "nst"],
    "of factors": ["ft", "fsp", "ab"],
    "relational": ["sp", "cc", "rkd", "pkt", "crd"],
}


def test_no_loss_is_left_out():
    available = tfkd.losses.available()
    # Not those that other tests define.
    ours = {name for name, cls in available.items() if cls.__module__.startswith("tfkd.")}
    assert sorted(sum(GROUPS.values(), [])) == sorted(ours)


def train(replicas, ids):
    """Takes two steps; returns the student, the losses' own variables, and the logs."""
    images, labels = tiny.data(24)
    with tfkd.runtime.strategy("mirrored", replicas).scope():
        keras.utils.set_random_seed(0)
        losses = [tfkd.losses.get(identifier, weight=1.0) for identifier in ids]
        for loss in losses:
            loss.preparation = None
            if loss.needs_indices:
                loss.set_examples(labels)
        # FSP compares maps of as many channels.
        student, teacher = tiny.model(4, seed=1), tiny.model(4, seed=2)
        distiller = tfkd.KnowledgeDistiller(student, teacher, losses=losses)
        distiller.compile(keras.optimizers.SGD(0.01))
        data = tf.data.Dataset.from_tensor_slices(
            (images, {"label": labels, "index": np.arange(24)})
        ).batch(12)
        logs = distiller.fit(data, verbose=0).history
    values = [[v.numpy() for v in part.trainable_variables] for part in (student, *losses)]
    return values[0], sum(values[1:], []), {key: value[0] for key, value in logs.items()}


@pytest.fixture(scope="module", params=list(GROUPS))
def one_device(request):
    return GROUPS[request.param], train(1, GROUPS[request.param])


@pytest.mark.parametrize("replicas", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_the_update_is_that_of_one_device(one_device, replicas):
    ids, (student, connectors, logs) = one_device
    found_student, found_connectors, found_logs = train(replicas, ids)
    assert found_logs == pytest.approx(logs, rel=1e-4)
    for a, b in zip(student + connectors, found_student + found_connectors, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * max(1e-2, np.abs(a).max()))
