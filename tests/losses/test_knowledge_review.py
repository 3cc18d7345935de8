import numpy as np
import pytest
from loss_samples import Sample

import tfkd
from tfkd import losses


def test_every_output_has_the_shape_of_the_teachers_map():
    sample = Sample("reviewkd")
    fusions = sample.loss.fusions[::-1]
    assert [fusion.target_shape for fusion in fusions] == [(8, 8, 5), (2, 2, 3), (1, 1, 9)]
    # As wide as the student's last tap.
    assert {fusion.width for fusion in fusions} == {6}
    wide = losses.get("reviewkd")
    wide.build([(2, 600)], [(2, 9)])
    assert wide.fusions[0].width == 512


def test_deeper_taps_reach_the_output_for_earlier_ones():
    sample = Sample("reviewkd")
    masks = [[1.0] * 6, [0.0] * 6, [0.0] * 6]
    _, gradients = sample.value_and_gradients(sample.student, sample.teacher, masks)
    assert all(np.any(gradient) for gradient in gradients[:3])


def test_weight_warms_up():
    loss = losses.get("reviewkd", weight=5.0)
    weights = []
    for epoch in (0, 10, 20, 100):
        loss.start_epoch(epoch)
        weights.append(float(loss.value_of(loss.weight)))
    assert weights == [0.0, 2.5, 5.0, 5.0]
    assert losses.get("reviewkd", weight=5.0, warm_up_epochs=0).weight == 5.0
    schedule = tfkd.schedules.Constant(3.0)
    assert losses.get("reviewkd", weight=schedule).weight is schedule


@pytest.mark.parametrize("name", ["resnet14", "wrn_16_1"])
def test_the_student_is_read_behind_its_relus_and_the_teacher_before(name):
    student, teacher = (tfkd.models.create(model, 5, (16, 16, 3)) for model in ("resnet8", name))
    distiller = tfkd.KnowledgeDistiller(student, teacher, losses=["reviewkd"])
    ((_, pairs),) = distiller.distillation_parts()
    ours, theirs = zip(*pairs)
    assert ours == ("stage1", "stage2", "stage3", "pooled")
    assert theirs == tuple(tfkd.taps.at_spots(teacher, "before_relu+pooled"))
    assert theirs[0] != "stage1"
    # Where spots are named the teacher's are not looked for.
    loss = losses.get("reviewkd", spots="stages")
    again = tfkd.KnowledgeDistiller(student, teacher, losses=[loss])
    assert again.distillation_parts()[0][1] == [(f"stage{i}", f"stage{i}") for i in (1, 2, 3)]


def test_spots_of_its_own_survive_its_config():
    copy = losses.KnowledgeReview.from_config(losses.get("reviewkd").get_config())
    assert copy.teacher_spots == "before_relu+pooled"
