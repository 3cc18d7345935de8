"""The table of methods: how each is built from tiny models, for tests of what all must satisfy."""

import keras
import loss_samples
import numpy as np
import tensorflow as tf
import tiny

import tfkd

#: In a data set; the last of two batches cannot be shared equally.
EXAMPLES = 23
BATCH = 12

#: Arguments of an ACN that is quick, and accepts some of its images from the first epoch on.
SMALL_GAN = {
    "image_mean": 0.0,
    "image_std": 1.0,
    "warm_up": 0,
    "generator_width": 4,
    "generator_blocks": 1,
    "discriminator_width": 4,
    "acceptance_threshold": 0.0,
}


def by_losses(*ids, prepared=False, teachers=1):
    """Distillation by some losses; by two teachers where they weigh them."""

    def build(student, teacher):
        if teachers == 2:
            teacher = [teacher, tiny.model(5, "third", seed=7)]
        losses = [tfkd.losses.get(identifier) for identifier in ids]
        for loss in losses:
            # Not by its argument, which reviewkd would warm up.
            loss.weight = 1.0
            if not prepared:
                loss.preparation = None
            if loss.needs_indices:
                loss.set_examples(tiny.data(EXAMPLES)[1])
        return tfkd.KnowledgeDistiller(student, teacher, losses=losses)

    return build


def task_oriented(prepared=False):
    """TOFD, its teacher's learners as they are made, or trained for an epoch."""

    def build(*models):
        made = tfkd.TOFD(*models)
        made.ensure_built()
        settings = made.teacher_learners.preparation
        made.teacher_learners.preparation = {**settings, "epochs": 1} if prepared else None
        return made

    return build


#: `{name: function of two models}`: student and teacher, or two students.
METHODS = {
    "alone": lambda student, _: tfkd.KnowledgeDistiller(student),
    "kd+at": lambda *models: tfkd.KnowledgeDistiller(*models, losses=["kd", "at"]),
    "kd+at, dot": lambda *models: tfkd.KnowledgeDistiller(*models, losses=["kd", "at"]),
    "kd, curriculum": lambda *models: tfkd.KnowledgeDistiller(
        *models,
        losses=[tfkd.losses.get("kd", temperature=tfkd.schedules.CurriculumTemperature(epochs=1))],
    ),
    "ackd": lambda *models: tfkd.ACKD(*models, auxiliary_learners=1),
    "ackd, logit attention": lambda *models: tfkd.ACKD(
        *models, auxiliary_learners=1, attention="logit", adversarial_target="ensemble"
    ),
    "sakd": lambda *models: tfkd.SAKD(*models, losses=["fitnet"], homogeneous=False),
    "sakd, random": lambda *models: tfkd.SAKD(*models, losses=["fitnet"], decisions="random"),
    "iakd": lambda *models: tfkd.IAKD(*models, schedule="uniform", kd_weight=0.5),
    "iakd, kept": lambda *models: tfkd.IAKD(*models, schedule="uniform", start=1.0),
    "iakd, swapped": lambda *models: tfkd.IAKD(*models, schedule="uniform", start=0.0),
    "iakd, batch statistics": lambda *models: tfkd.IAKD(
        *models, schedule="uniform", start=0.2, teacher_statistics="batch"
    ),
    "iakd, per sample": lambda *models: tfkd.IAKD(*models, sampling="sample"),
    "byot": lambda student, _: tfkd.BYOT(student, feature_weight=0.1),
    "dks": lambda student, _: tfkd.DKS(student),
    "tofd": task_oriented(),
    "tofd, prepared": task_oriented(prepared=True),
    "dafl": lambda *models: tfkd.DAFL(*models, noise_size=8, generator_width=4),
    "dfad": lambda *models: tfkd.DFAD(*models, student_steps=2, noise_size=8, generator_width=4),
    "teacher_free": lambda student, _: tfkd.TeacherFree(student, multiplier=5.0),
    "mutual": lambda *models: tfkd.MutualDistiller(models, temperature=2.0),
    "kdcl": lambda *models: tfkd.KDCL(models),
    "kdcl, linear": lambda *models: tfkd.KDCL(models, targets="linear"),
    "one": lambda student, _: tfkd.ONE(student, branches=2, ramp=0),
    "okddip": lambda student, _: tfkd.OKDDip(student, branches=3, ramp=0, reduction=2),
    "pcl": lambda student, _: tfkd.PCL(student, branches=2, ramp=0),
    "acn": lambda *models: tfkd.ACN(
        models, **SMALL_GAN, divergent_mean="accepted", generator_clip_norm=0.2
    ),
    "acn, all images": lambda *models: tfkd.ACN(models, **SMALL_GAN, filter_divergent=False),
    "acn, warming up": lambda *models: tfkd.ACN(models, **SMALL_GAN | {"warm_up": 1}),
}
#: The losses of the package in groups: what of a group would hide in the sum shows in the logs.
LOSSES = {
    f"losses of {group}": by_losses(
        *(name for name, row in loss_samples.LOSSES.items() if row.group == group),
        teachers=2 if group == "teachers" else 1,
    )
    for group in dict.fromkeys(row.group for row in loss_samples.LOSSES.values())
} | {"prepared losses": by_losses("ft", "ab", prepared=True)}
#: What the names of the methods of several students begin with.
OF_STUDENTS = ("mutual", "kdcl", "acn")
#: Methods that look at neither images nor labels.
DATA_FREE = ("dafl", "dfad")
#: One variant of each method.
PLAIN = [name for name in METHODS if "," not in name]


def models(method, seeds=(1, 2), **arguments):
    """Two tiny models for a method, the second one wider: FSP alone compares maps of one width."""
    widths = (4, 4) if method in LOSSES else (4, 6)
    pairs = zip(("one", "two"), seeds, widths)
    return [tiny.model(width, name, seed=seed, **arguments) for name, seed, width in pairs]


def make(method, *given, rate=0.02, **compile_arguments):
    """Returns a compiled distiller whose optimizers are all SGD of the same rate.

    Adam would turn gradients that are rounding into steps.
    """
    made = (METHODS | LOSSES)[method](*(given or models(method)))
    optimizers = {name: keras.optimizers.SGD(rate) for name in made.extra_optimizers}
    settings = {"metrics": ["accuracy"], **optimizers, **compile_arguments}
    kind = tfkd.optimizers.DOT if method.endswith("dot") else tfkd.optimizers.SGD
    made.compile(kind(rate, momentum=0.9), **settings)
    return made


def data(examples=EXAMPLES, weighted=False):
    """Two batches of images with labels and positions, and maybe sample weights from 0 to 2."""
    images, labels = tiny.data(examples)
    parts = [images, {"label": labels, "index": np.arange(examples)}]
    if weighted:
        parts.append((np.arange(examples) % 3).astype("float32"))
    return tf.data.Dataset.from_tensor_slices(tuple(parts)).batch(BATCH)
