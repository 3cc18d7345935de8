"""ACKD: auxiliary learners collaborate against a discriminator (Liu et al., 2021)."""

import tensorflow as tf
from keras import layers, ops

from tfkd import losses, pictures, schedules, taps
from tfkd.distillers.learners_distiller import MAIN, LearnersDistiller, pooled, runner
from tfkd.errors import UsageError, check_nonnegative, check_one_of
from tfkd.layers import AttentionFusion, Discriminator, LogitAttention
from tfkd.losses import masked_mean

ATTENTIONS = ("channel", "logit", "uniform")
TARGETS = ("teacher", "ensemble")

#: The name of the fused learner.
FUSED = "fused"


class ACKD(LearnersDistiller):
    """Adversarial collaborative knowledge distillation.

    While it is trained, the student is more than one classifier: auxiliary learners read its
    intermediate stages, attention fuses their feature maps with the student's own, and a fused
    classifier reads the result. The teacher and the labels teach every learner, the fused one
    teaches the others, and a discriminator that tells teacher features from student features is
    to be deceived by all of them.

        L = Σ_n w_n · (CE(z_n, y) + kd_weight · KD(z_n, z_teacher))
            + collaboration_weight · Σ_{n ≠ fused} KD(z_n, z_fused)
            + adversarial_weight · mean_n softplus(−D(R_n h_n))
        L_D = softplus(−D(h_teacher)) + mean_n softplus(D(R_n h_n))

    with `w_n` 1 for the student's own classifier and `auxiliary_weight` for the other learners,
    logits `z`, pooled features `h` and a linear map `R_n` to the teacher's width per
    learner. Gradients stop at what teaches. Both objectives come from one forward pass of every
    network; the discriminator's step is taken first.

    `distiller.student` stays the plain student, `fused_student()` is the student with auxiliary
    learners and fusion.

    Args:
        student: A `keras.Model` that outputs logits `(batch, classes)`.
        teacher: A trained `keras.Model` that outputs logits `(batch, classes)`.
        temperature: Positive number, of all KD terms.
        kd_weight: Number of at least 0.
        collaboration_weight: Number of at least 0.
        adversarial_weight: Number of at least 0, or a schedule. 0: no discriminator.
        adversarial_ramp: Number of epochs over which `adversarial_weight` grows from 0; 0 for
            none.
        auxiliary_learners: Integer, how many intermediate stages get a learner, from the last one
            down; −1 for all. 0 leaves the student's own terms alone: it then equals
            `KnowledgeDistiller` with `kd`.
        auxiliary_weight: Number of at least 0, or a schedule: the weight of labels and teacher for
            every learner but the student's own.
        auxiliary_design: `"separable"` or `"bottleneck"`; see `tfkd.layers.AuxiliaryLearner`.
        attention: What fuses the learners. `"channel"`: their maps, by one weight per channel.
            `"logit"`: their logits, by the similarity of their features; each learner then has a
            mixture of its own to learn from. `"uniform"`: the mean of their maps.
        adversarial_target: What the discriminator takes for real: `"teacher"`, the teacher's
            features; `"ensemble"`, the fused learner's, with the others as fakes and no `R_n`.
        stages: List of taps of the student that are maps, in the order in which it computes
            them, its last feature map at the end. None for its stages as `tfkd.taps` finds them.
        teacher_features: The teacher's tap with its features. None for its pooled vector.
        teacher_preprocessing: What makes the teacher's inputs of the student's; see `Distiller`.
        relational_scope: No loss here is relational; see `Distiller`.
        name: String, optional.

    Raises:
        UsageError: If an option is none of those above, the student has fewer than two stages,
            or the models do not fit each other (see `Distiller`).

    Example:
    ```python
    distiller = tfkd.ACKD(student, teacher, temperature=4.0, adversarial_ramp=3)
    distiller.compile("sgd", metrics=["accuracy"], discriminator_optimizer="adam")
    distiller.fit(train, validation_data=validation, epochs=30)
    distiller.student.save("student.keras")
    distiller.fused_student().save("fused.keras")
    ```

    Logs: `loss`; `student_loss`, the student's own on the labels; `learners_loss`, the sum of
    the others'; `kd_loss`, the sum over all by `w_n`; `collaboration_loss`, `adversarial_loss` and
    `discriminator_loss`, unweighted; `{learner}_accuracy` and `{learner}_attention`, its mean
    weight in the fusion; `discriminator_real_accuracy` and `discriminator_fake_accuracy`. Learners
    are called `auxiliary1` (after the first stage), ..., `main`, `fused`; `accuracy` is the
    student's.

    Deviations: the paper was read in abstract only, and no code of it is public. The auxiliary
    learners, the attention and the adversary are the abstract's; their architectures, all
    losses, weights, the ramp, the optimizer of the discriminator and the form of the fused
    student are reconstructions after the works that it cites. docs/ackd.md says which is which.

    References:
        - [Improved Knowledge Distillation via Adversarial
          Collaboration](https://arxiv.org/abs/2111.14356), abstract.
    """

    id = "ackd"
    fewest_learners = 0
    extra_optimizers = {
        "discriminator_optimizer": {"name": "adam", "learning_rate": 1e-4, "beta_1": 0.5}
    }

    def __init__(
        self,
        student,
        teacher,
        temperature=4.0,
        kd_weight=1.0,
        collaboration_weight=1.0,
        adversarial_weight=0.1,
        adversarial_ramp=10.0,
        auxiliary_learners=-1,
        auxiliary_weight=1.0,
        auxiliary_design="separable",
        attention="channel",
        adversarial_target="teacher",
        stages=None,
        teacher_features=None,
        teacher_preprocessing=None,
        relational_scope="global",
        name=None,
    ):
        super().__init__(
            student,
            teacher,
            stages,
            auxiliary_learners,
            auxiliary_design,
            relational_scope,
            teacher_preprocessing,
            name,
        )
        check_one_of("attention", attention, ATTENTIONS)
        check_one_of("adversarial_target", adversarial_target, TARGETS)
        self.attention = attention
        self.adversarial_target = adversarial_target
        self.collaborates = bool(self.auxiliary_stages)
        self.adversarial_weight = _ramp(adversarial_weight, adversarial_ramp)
        self.is_adversarial = self.collaborates and adversarial_weight != 0
        self.teacher_features = teacher_features
        if self.is_adversarial and teacher_features is None:
            self.teacher_features = taps.at_spots(self.teacher, "pooled")[0]
        for argument, weight in (
            ("kd_weight", kd_weight),
            ("collaboration_weight", collaboration_weight),
        ):
            schedules.number_or_schedule(argument, weight, nonnegative=True)
        self.kd_loss = losses.KnowledgeDistillation(temperature, weight=kd_weight)
        self.collaboration_loss = losses.KnowledgeDistillation(
            temperature, weight=collaboration_weight, name="collaboration"
        )
        self.auxiliary_weight = schedules.number_or_schedule(
            "auxiliary_weight", auxiliary_weight, nonnegative=True
        )
        self.watch(teacher=[self.teacher_features] if self.is_adversarial else [])

    def build(self, input_shape):
        """Creates auxiliary learners, fusion and discriminator for inputs of this shape."""
        super().build(input_shape)
        student, teacher = self.tap_shapes(input_shape)
        logits, last_map = student[taps.LOGITS], student[self.stages[-1]]
        channels = last_map[-1]
        dtype = self.student.dtype_policy
        names = [*self.auxiliary_stages, MAIN, *([FUSED] if self.collaborates else [])]
        self.kd_loss.build([logits] * len(names), [teacher[taps.LOGITS]] * len(names))
        if self.collaborates:
            peers = names[:-1]
            self.collaboration_loss.build([logits] * len(peers), [logits] * len(peers))
            if self.attention == "logit":
                self.fusion = LogitAttention(dtype=dtype)
                self.fusion.build([(None, len(peers), channels), (None, len(peers), logits[-1])])
            else:
                self.fusion = AttentionFusion(uniform=self.attention == "uniform", dtype=dtype)
                self.fusion.build([last_map] * len(peers))
                self.fused_classifier = layers.Dense(logits[-1], dtype=dtype)
                self.fused_classifier.build((None, channels))
        if self.is_adversarial:
            self._build_adversary(names, channels, teacher[self.teacher_features][-1], dtype)

    def _build_adversary(self, names, channels, teacher_channels, dtype):
        self.projections = {}
        self.discriminator = Discriminator(dtype=dtype)
        if self.adversarial_target == "ensemble":
            self.discriminator.build((None, channels))
            return
        self.discriminator.build((None, teacher_channels))
        for learner in names:
            self.projections[learner] = layers.Dense(teacher_channels, use_bias=False, dtype=dtype)
            self.projections[learner].build((None, channels))

    def distillation_parts(self):
        """Returns the loss that teacher and plain student share, for `check`."""
        return [(self.kd_loss, [(taps.LOGITS, taps.LOGITS)])]

    def optimizers(self):
        """Returns `{name: (optimizer, variables it updates)}`."""
        adversary = self.discriminator.trainable_variables if self.is_adversarial else []
        theirs = {id(variable) for variable in adversary}
        own = [variable for variable in self.trainable_variables if id(variable) not in theirs]
        found = {"optimizer": (self.optimizer, own)}
        if self.is_adversarial:
            found["discriminator_optimizer"] = (self.discriminator_optimizer, adversary)
        return found

    def train_step(self, data):
        """Runs every network once, and takes one step of the discriminator and of the student."""
        batch = self.unpack(data)
        self.observe_teacher(batch)
        with tf.GradientTape(persistent=self.is_adversarial) as tape:
            logits, terms, detection = self.forward(batch)
            if self.is_adversarial:
                detection = self.auxiliary_objective(batch, detection)
            objective = self.objective(batch, terms)
        optimizers = self.optimizers()
        if self.is_adversarial:
            self.update(tape, detection, *optimizers["discriminator_optimizer"])
        self.update(tape, objective, *optimizers["optimizer"])
        return self.logs(batch, logits)

    def compute_losses(self, batch):
        """Runs every network once; the losses are those of the learners, the student included."""
        logits, terms, _ = self.forward(batch)
        return logits, terms

    def forward(self, batch):
        """Runs the learners, their fusion and the discriminator.

        Args:
            batch: The `Batch`.

        Returns:
            The tuple `(logits, terms, detection)`: the student's logits, and the terms of the
            learners' objective and of the discriminator's.
        """
        teacher = self.observe_teacher(batch)
        student = self.observe_student(batch)
        vectors, logits, targets = self.collaborate(student, batch, training=True)
        terms, detection = self.teach(batch, logits, targets, teacher), {}
        if self.is_adversarial:
            real, fakes = self.judge(vectors, teacher)
            deception = _mean_over(batch, [ops.softplus(-fake) for fake in fakes])
            loss = _mean_over(batch, [ops.softplus(fake) for fake in fakes])
            loss += _mean_over(batch, [ops.softplus(-real)])
            self.track("discriminator_real_accuracy", _share(real > 0), batch)
            self.track("discriminator_fake_accuracy", _share(ops.stack(fakes) < 0), batch)
            terms["adversarial_loss"] = (self.value_of(self.adversarial_weight), deception)
            detection = {"discriminator_loss": (1.0, loss)}
        return student[taps.LOGITS], terms, detection

    def collaborate(self, student, batch=None, training=False):
        """Runs the auxiliary learners and their fusion on the student's features.

        Args:
            student: `{tap: tensor}`, as from `observe_student`.
            batch: The `Batch`, to log accuracies and attention; None for no logs.
            training: Whether the learners run in training mode.

        Returns:
            The tuple `(vectors, logits, targets)`: `{learner: pooled features}` and
            `{learner: logits}`, the fused learner's last, and the logits from which each of the
            others learns, `{learner: logits}`.
        """
        maps, logits = self.run_learners(student, training)
        vectors = pooled(maps)
        if not self.collaborates:
            return vectors, logits, {}
        if self.attention == "logit":
            targets, attention = self._mix(vectors, logits)
        else:
            targets, attention = self._fuse(maps, vectors, logits, training)
        if batch is not None:
            self.track_learners(batch, logits)
            for position, learner in enumerate(maps):
                self.track(f"{learner}_attention", ops.mean(attention[:, position]), batch)
        return vectors, logits, targets

    def _fuse(self, maps, vectors, logits, training):
        """Adds the fused learner, whose features are a weighted sum of the learners' maps."""
        tensors = list(maps.values())
        run = runner(self.fusion, tensors[0])
        fused, attention = run(tensors, training=training)
        vectors[FUSED] = ops.mean(fused, axis=(1, 2))
        logits[FUSED] = self.fused_classifier(vectors[FUSED])
        return dict.fromkeys(maps, logits[FUSED]), attention

    def _mix(self, vectors, logits):
        """Adds the fused learner, whose logits are the mean of the learners' targets."""
        stacked = ops.stack(list(vectors.values()), axis=1)
        tensors = ops.stack(list(logits.values()), axis=1)
        mixed, attention = runner(self.fusion, stacked)([stacked, tensors])
        shares = ops.mean(attention, axis=1)
        targets = {learner: mixed[:, position] for position, learner in enumerate(logits)}
        logits[FUSED] = ops.mean(mixed, axis=1)
        weights = ops.cast(ops.expand_dims(shares, -1), stacked.dtype)
        vectors[FUSED] = ops.sum(weights * stacked, axis=1)
        return targets, shares

    def teach(self, batch, logits, targets, teacher):
        """Returns the terms of labels, teacher and fused learner."""
        own, others = self.learn_labels(batch, logits)
        weight = self.value_of(self.auxiliary_weight)
        terms = {
            "student_loss": (1.0, own),
            "kd_loss": (
                self.kd_loss.value_of(self.kd_loss.weight),
                self.learn_teacher(batch, logits, teacher[taps.LOGITS], weight),
            ),
        }
        if self.collaborates:
            terms["learners_loss"] = (weight, others)
            peers = [logits[learner] for learner in targets]
            value = self.distillation_loss(
                self.collaboration_loss, batch, peers, list(targets.values())
            )
            weight = self.collaboration_loss.value_of(self.collaboration_loss.weight)
            terms["collaboration_loss"] = (weight, value)
        return terms

    def learn_teacher(self, batch, logits, target, weight):
        """Returns the divergence of the student from the teacher, and by a weight the others'."""
        own = self.distillation_loss(self.kd_loss, batch, [logits[MAIN]], [target])
        others = [tensor for learner, tensor in logits.items() if learner != MAIN]
        if not others:
            return own
        targets = [target] * len(others)
        return own + weight * self.distillation_loss(self.kd_loss, batch, others, targets)

    def judge(self, vectors, teacher):
        """Runs the discriminator on all features at once.

        Returns:
            The tuple `(real, fakes)`: a tensor `(batch,)`, and a list of such.
        """
        if self.adversarial_target == "ensemble":
            real = ops.stop_gradient(vectors[FUSED])
            fakes = [vector for learner, vector in vectors.items() if learner != FUSED]
        else:
            real = teacher[self.teacher_features]
            if len(real.shape) == 4:
                real = ops.mean(real, axis=(1, 2))
            fakes = [self.projections[learner](vector) for learner, vector in vectors.items()]
        dtype = self.discriminator.compute_dtype
        everything = [ops.cast(vector, dtype) for vector in (real, *fakes)]
        real, *fakes = ops.split(self.discriminator(ops.concatenate(everything)), len(everything))
        return real, fakes

    def test_step(self, data):
        """Evaluates the student, and the fused one beside it; called by `evaluate`."""
        batch = self.unpack(data)
        logits = self.run_student(batch, self.student, self.all_logits, training=False)
        if self.collaborates:
            self.track_accuracy(f"{FUSED}_accuracy", logits[FUSED], batch)
        return self.evaluated(batch, logits[MAIN])

    def all_logits(self, inputs, training):
        """Returns `{learner: logits}` of the student and the learners for some inputs."""
        student = self._observers.student(inputs, training=training)
        return self.collaborate(student, training=training)[1]

    def learners(self):
        """Returns `{"fused": fused student}`, or nothing where there are no auxiliary learners."""
        return {FUSED: self.fused_student()} if self.collaborates else {}

    def pictures(self, history):
        """Returns `{"ackd.png": ...}`: accuracies, attention and the discriminator."""
        if not self.collaborates:
            return {}
        peers = [*self.auxiliary_stages, MAIN]
        contents = {
            "training accuracy": {
                **{name: f"{name}_accuracy" for name in self.auxiliary_stages},
                "main (the student)": "accuracy",
                FUSED: f"{FUSED}_accuracy",
            },
            "mean attention": {name: f"{name}_attention" for name in peers},
        }
        if self.is_adversarial:
            real = "teacher" if self.adversarial_target == "teacher" else FUSED
            contents["discriminator accuracy"] = {
                f"real (features of the {real})": "discriminator_real_accuracy",
                "fake (features of the learners)": "discriminator_fake_accuracy",
            }
        return {"ackd.png": pictures.Panels(history, contents)}

    def fused_student(self):
        """Returns student, auxiliary learners and fusion as one Keras model.

        It shares its layers and weights with the distiller, is made of Keras' own layers, and
        can be saved and loaded without tfkd where the student can.

        Returns:
            A `keras.Model` that outputs the fused logits `(batch, classes)`.

        Raises:
            UsageError: If there are no auxiliary learners, or the student is subclassed.
        """
        if not self.collaborates:
            raise UsageError("There is no fused student without auxiliary learners.")

        def fuse(student):
            return self.collaborate(student, training=None)[1][FUSED]

        return self.joined(FUSED, fuse)


def _ramp(weight, epochs):
    """Returns the weight of the adversarial term, which grows from 0 where `epochs` is above 0."""
    weight = schedules.number_or_schedule("adversarial_weight", weight, nonnegative=True)
    check_nonnegative("adversarial_ramp", epochs)
    if isinstance(weight, schedules.Schedule) or not epochs or not weight:
        return weight
    return schedules.LinearWarmUp(0.0, weight, epochs=epochs)


def _share(condition):
    """Returns the share of elements for which a condition holds."""
    return ops.mean(ops.cast(condition, "float32"))


def _mean_over(batch, values):
    """Returns the mean over a list of tensors `(batch,)`, by the samples' weights."""
    return masked_mean(sum(values) / len(values), batch.sample_weight)
