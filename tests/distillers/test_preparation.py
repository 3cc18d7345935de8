import numpy as np
import pytest
import tiny
from tiny import EAGER, values

import tfkd
from tfkd.errors import UsageError
from tfkd.runs import checkpoint


def make(*losses, student=None):
    distiller = tfkd.KnowledgeDistiller(
        student or tiny.model(seed=1), tiny.model(8, seed=2), losses=list(losses)
    )
    distiller.compile("sgd", **EAGER)
    return distiller


def equal(before, after):
    return [np.array_equal(a, b) for a, b in zip(before, after, strict=True)]


def test_the_paraphraser_is_trained_before_and_frozen_in_training():
    distiller = make("ft")
    (loss,) = distiller.distillation_losses
    student, teacher = values(distiller.student.variables), values(distiller.teacher.variables)
    start = values(loss.preparation_variables)
    x, y = tiny.data()
    distiller.prepare(x, y, epochs=2, verbose=0)
    prepared = values(loss.preparation_variables)
    assert not any(equal(start, prepared))
    assert all(equal(student, values(distiller.student.variables)))
    assert all(equal(teacher, values(distiller.teacher.variables)))
    distiller.fit(x, y, verbose=0)
    assert all(equal(prepared, values(loss.preparation_variables)))
    assert not all(equal(student, values(distiller.student.variables)))


def test_preparation_lowers_what_it_minimises():
    distiller = make("ft")
    (loss,), (x, y) = distiller.distillation_losses, tiny.data()
    taps = distiller.observe_teacher(distiller.unpack((x, y)))
    maps = [taps[tap] for tap in taps if len(taps[tap].shape) == 4][-1:]
    before = float(loss.preparation_loss(maps, maps))
    distiller.prepare(x, y, epochs=20, verbose=0)
    assert float(loss.preparation_loss(maps, maps)) < before


def test_activation_boundaries_initialise_the_student_and_then_step_aside():
    distiller = make("ab")
    student = distiller.student
    before = values(student.trainable_variables)
    head = values(student.get_layer("logits").variables)
    x, y = tiny.data()
    distiller.prepare(x, y, epochs=1, verbose=0)
    assert not all(equal(before, values(student.trainable_variables)))
    # The loss is on the maps: it says nothing of the classifier.
    assert all(equal(head, values(student.get_layer("logits").variables)))
    history = distiller.fit(x, y, verbose=0).history
    assert not {"ab_loss", "distillation_loss"} & set(history)
    assert not all(equal(head, values(student.get_layer("logits").variables)))


def test_the_first_fit_prepares_and_later_ones_do_not(capsys):
    loss = tfkd.losses.FactorTransfer()
    loss.preparation = {**loss.preparation, "epochs": 2}
    distiller = make(loss)
    x, y = tiny.data()
    distiller.fit(x, y, verbose=2)
    assert capsys.readouterr().out.count("Preparing loss 'ft'") == 1
    prepared = values(loss.preparation_variables)
    distiller.fit(x, y, verbose=2)
    assert "Preparing" not in capsys.readouterr().out
    assert all(equal(prepared, values(loss.preparation_variables)))


def test_a_restored_distiller_is_prepared(tmp_path):
    x, y = tiny.data()
    first, second, third = make("ft"), make("ft"), make("ft")
    first.prepare(x, y, epochs=1, verbose=0)
    checkpoint.save(tmp_path / "checkpoint.npz", first, {})
    checkpoint.restore(tmp_path / "checkpoint.npz", second)
    first.save_weights(tmp_path / "state.weights.h5")
    third.load_weights(tmp_path / "state.weights.h5")
    for again in (second, third):
        assert not again.preparations()
        mine, restored = (d.distillation_losses[0].preparation_variables for d in (first, again))
        assert all(equal(values(mine), values(restored)))


def test_a_student_that_has_not_run_cannot_be_prepared():
    loss = tfkd.losses.get("ft", spots=[("body", "stage1")])
    distiller = make(loss, student=tiny.Subclassed())
    with pytest.raises(UsageError, match="call the distiller on a batch first"):
        distiller.prepare(*tiny.data(), verbose=0)
    distiller(tiny.data()[0])
    distiller.prepare(*tiny.data(), epochs=1, verbose=0)
    assert not distiller.preparations()


def test_a_loss_that_needs_indices_says_how_to_give_them():
    x, y = tiny.data()
    loss = tfkd.losses.get("crd", negatives=8)
    loss.set_examples(y)
    distiller = make(loss)
    with pytest.raises(UsageError, match=r"needs to know which .*indices=True"):
        distiller.fit(x, y, verbose=0)
    bank = loss.memory_student.numpy()
    distiller.fit(x, {"label": y, "index": np.arange(len(y))}, batch_size=16, verbose=0)
    moved = ~np.isclose(bank, loss.memory_student.numpy()).all(axis=1)
    assert moved.all()


def test_only_the_seen_rows_of_the_memory_move():
    x, y = tiny.data()
    loss = tfkd.losses.get("crd", negatives=8)
    loss.set_examples(y)
    distiller = make(loss)
    bank = loss.memory_teacher.numpy()
    distiller.train_on_batch(x[:3], {"label": y[:3], "index": np.array([4, 9, 2])})
    moved = ~np.isclose(bank, loss.memory_teacher.numpy()).all(axis=1)
    assert np.flatnonzero(moved).tolist() == [2, 4, 9]


@pytest.mark.parametrize("method", ["ab", "ft"])
def test_preparation_does_not_see_the_validation_split(method):
    """Validation is on the last samples, as Keras splits them: here these are far off."""
    loss = tfkd.losses.get(method)
    loss.preparation = {**loss.preparation, "epochs": 1}
    x, y = tiny.data(16)
    x[8:] *= 1e6
    distiller = tfkd.KnowledgeDistiller(tiny.model(seed=1), tiny.model(seed=2), losses=[loss])
    distiller.compile("sgd", metrics=["accuracy"], **EAGER)
    history = distiller.fit(x, y, validation_split=0.5, batch_size=8, verbose=0).history
    assert history["val_loss"][0] > 1e3
    weights = [np.array(variable) for variable in distiller.variables]
    assert all(np.max(np.abs(weight)) < 1e3 for weight in weights if weight.dtype == "float32")
