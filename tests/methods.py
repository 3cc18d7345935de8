"""The table of methods: how each is built from tiny models, for tests of what all must satisfy."""

import tfkd

#: Arguments of an ACN that is quick.
SMALL_GAN = {
    "image_mean": 0.0,
    "image_std": 1.0,
    "warm_up": 0,
    "generator_width": 4,
    "generator_blocks": 1,
    "discriminator_width": 4,
}

#: `{name: function of two models}`: student and teacher, or two students.
METHODS = {
    "alone": lambda student, _: tfkd.KnowledgeDistiller(student),
    "kd+at": lambda *models: tfkd.KnowledgeDistiller(*models, losses=["kd", "at"]),
    "ackd": lambda *models: tfkd.ACKD(*models, auxiliary_learners=1),
    "sakd": lambda *models: tfkd.SAKD(*models, losses=["fitnet"]),
    "sakd, random": lambda *models: tfkd.SAKD(*models, losses=["fitnet"], decisions="random"),
    "iakd": lambda *models: tfkd.IAKD(*models, schedule="uniform", start=1.0, kd_weight=0.5),
    "iakd, swapped": lambda *models: tfkd.IAKD(*models, schedule="uniform", start=0.0),
    "iakd, per sample": lambda *models: tfkd.IAKD(
        *models, schedule="uniform", start=1.0, sampling="sample"
    ),
    "mutual": lambda *models: tfkd.MutualDistiller(models),
    "acn, warming up": lambda *models: tfkd.ACN(models, **SMALL_GAN | {"warm_up": 1}),
    "acn": lambda *models: tfkd.ACN(models, **SMALL_GAN),
}
