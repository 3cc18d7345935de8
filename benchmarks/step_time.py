"""How much longer a distillation step takes than the work it cannot do without.

    python benchmarks/step_time.py [--method=kd] [--teacher=wrn_40_2] [--student=wrn_16_2]

All measured steps run in one process, in turn, so that whatever else the machine does slows them
alike; what is printed are medians and ratios of medians. The first line compares the student's
training step by tfkd with that of `keras.Model.fit`. The floor is the student's training step by
tfkd plus the teacher's inference on the same batch. A method that computes something else is
compared with the sum of its parts too, each measured by itself (`PARTS`). `--method` takes ids as
configs do, several separated by commas, of which `all` is every loss; of ACN the step after the
warm-up is `acn:warm_up=0`. Losses that weigh several teachers get two, and a floor of both. With
`--memory` each step is taken in a process of its own instead, whose peak memory is printed: that of
the GPU, or else what is resident. `--output` keeps the results as data, from which `tfkd studies`
writes the page's table.
"""

import functools
import itertools
import subprocess
import sys
import time
import types

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

import tfkd
from tfkd import config as tfkd_config
from tfkd.errors import UsageError
from tfkd.methods import needs_indices, needs_teacher, peers, weighs_teachers
from tfkd.runs import assemble, measurements
from tfkd.runs import measure as measures

flags.DEFINE_string("method", "kd", "Methods, as in configs: kd, at, kd+at; or all.")
flags.DEFINE_string("teacher", "wrn_40_2", "Id of the teacher.")
flags.DEFINE_string("student", "wrn_16_2", "Id of the student.")
flags.DEFINE_integer("batch_size", 64, "Images per step.", 1)
flags.DEFINE_integer("rounds", 30, "How often each step is measured.", 3)
flags.DEFINE_integer("classes", 100, "Number of classes.", 2)
flags.DEFINE_boolean("keras", True, "Whether to measure keras.distillation.Distiller too.")
flags.DEFINE_boolean("memory", False, "Whether to measure the memory of each step, not its time.")
flags.DEFINE_string(
    "output", None, "JSON file for the results, such as docs/results/step-time.json."
)
flags.DEFINE_string(
    "precision", "float32", "Policy of all models but that of the Keras step, which is float32."
)
flags.DEFINE_string("peak", None, "Prints the peak memory of this step alone; for --memory.")

FLAGS = flags.FLAGS

#: Of the table of results.
COLUMNS = {
    "step": "",
    "ms": ".1f",
    "10 %": ".1f",
    "90 %": ".1f",
    "images/s": ".0f",
    "over its floor": ".3f",
}


def compiled(model):
    """Compiles a model or distiller as users would."""
    model.compile(
        tfkd.optimizers.SGD(0.01, momentum=0.9, weight_decay=5e-4),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=tfkd.runtime.jit_compile(),
    )
    return model


def traced(distiller, step):
    """Returns a step that is traced as a distiller runs its models."""
    with distiller.running():
        step()
    return step


def training_step(model, data):
    """Returns a function that takes one training step of a compiled model or distiller."""
    batches = iter(data)
    model.train_on_batch(*next(batches))
    model.make_train_function()

    def step():
        return tf.nest.map_structure(lambda x: x.numpy(), model.train_function(batches))

    return traced(model, step) if isinstance(model, tfkd.Distiller) else step


def inference(model, images):
    """Returns a function that runs a model's inference once."""
    forward = measures.forward(model)
    return lambda: forward(images).numpy()


def keras_distiller(student, teacher):
    """The same step by Keras' own distiller, its loss mended to be a KL divergence."""
    return keras.distillation.Distiller(
        teacher=teacher,
        student=student,
        distillation_losses=keras.distillation.LogitsDistillation(
            temperature=4.0, loss=keras.losses.KLDivergence()
        ),
        student_loss_weight=0.1,
    )


def ackd_parts(make, data):
    """The learners' own forward and backward pass, from taps and teacher outputs that are given."""
    distiller, data = compiled(make()), next(iter(data))
    batch = distiller.unpack(data)
    observed = distiller.observe_student(batch, training=False), distiller.observe_teacher(batch)
    students = {id(variable) for variable in distiller.student.trainable_variables}
    own = [v for v in distiller.trainable_variables if id(v) not in students]

    @tf.function(jit_compile=tfkd.runtime.jit_compile())
    def learners(data, student, teacher):
        batch = distiller.unpack(data)
        with tf.GradientTape() as tape:
            tape.watch(student)
            vectors, logits, targets = distiller.collaborate(student, training=True)
            terms = distiller.teach(batch, logits, targets, teacher)
            real, fakes = distiller.judge(vectors, teacher)
            adversarial = [tf.reduce_mean(tf.nn.softplus(x)) for x in (real, *fakes)]
            total = sum(adversarial) + sum(value for _, value in terms.values())
        return tape.gradient(total, [*student.values(), *own])

    def step():
        return [gradient.numpy() for gradient in learners(data, *observed)]

    steps = {"learners": traced(distiller, step)}
    return steps, lambda step, seconds, floor: step / (floor + seconds["learners"])


def sakd_parts(make, data):
    """What SAKD computes beside student and teacher: the routed features and their gradient."""
    distiller, data = compiled(make()), next(iter(data))
    batch = distiller.unpack(data)
    observed = distiller.observe_student(batch, training=False), distiller.observe_teacher(batch)

    @tf.function(jit_compile=tfkd.runtime.jit_compile())
    def routing(data, student, teacher):
        batch = distiller.unpack(data)
        with tf.GradientTape() as tape:
            decisions = distiller.decide(batch, student, teacher)
            routed = distiller.route(batch, teacher, decisions)
            student_loss = distiller.student_loss(batch, student["logits"])
            objective = distiller.routing_objective(batch, routed, decisions, student_loss)
        return tape.gradient(objective, distiller.policy_variables)

    def step():
        return [gradient.numpy() for gradient in routing(data, *observed)]

    steps = {"routing": traced(distiller, step)}
    return steps, lambda step, seconds, floor: step / (floor + seconds["routing"])


def iakd_parts(make, data):
    """Every mixed network that `p = 0.5` draws, as a step of its own without a condition.

    Beside them stand the step that chooses among them by a condition, here each in turn rather than
    at random, and the step in which every example has its own draw.
    """
    blocks = len(make().parts.blocks)
    choices = list(itertools.product((True, False), repeat=blocks))
    if len(choices) > 16:
        drawn = np.random.default_rng(0).random((16, blocks)) < 0.5
        choices = [tuple(map(bool, choice)) for choice in drawn]
    mixed = {}
    for choice in choices:
        distiller = make()
        distiller.draw = lambda size, choice=choice: choice
        name = "".join("S" if kept else "T" for kept in choice)
        mixed[name] = training_step(compiled(distiller), data)
    kept, turns = tf.Variable(choices[0]), itertools.cycle(choices)
    distiller = make()
    distiller.draw = lambda size: tf.unstack(kept)
    step = training_step(compiled(distiller), data)

    def in_turn():
        kept.assign(next(turns))
        return step()

    if FLAGS.rounds % len(choices):
        print(f"iakd: --rounds should be a multiple of {len(choices)}, so that all have their turn")
    steps = {
        **mixed,
        "chosen in turn": in_turn,
        "draw per example": training_step(compiled(make(sampling="sample")), data),
    }

    def ratio(step, seconds, floor):
        alone = sum(seconds[name] for name in mixed) / len(mixed)
        return seconds["chosen in turn"] / alone

    return steps, ratio


def mutual_parts(make, data):
    """The step of one classifier, as often as there are some."""
    count = len(make().students)
    step = training_step(compiled(tfkd.KnowledgeDistiller(make().student)), data)
    steps = {"one classifier": step}
    return steps, lambda step, seconds, floor: step / (count * seconds["one classifier"])


def acn_parts(make, data):
    """Mutual learning, and what divergent images cost: to make, to judge and to learn from."""
    distiller = compiled(make())
    mutual = training_step(compiled(tfkd.MutualDistiller(make().students)), data)
    data = next(iter(data))
    batch = distiller.unpack(data)
    images, noise = distiller.to_range(batch.inputs), distiller.draw_noise(batch.size)
    students = [v for student in distiller.students for v in student.trainable_variables]
    compiles = tf.function(jit_compile=tfkd.runtime.jit_compile())

    @compiles
    def generate(images, noise):
        return distiller.generate(images, noise)

    @compiles
    def discriminate(images, divergent):
        with tf.GradientTape() as tape:
            both = distiller.discriminator(tf.concat([images, divergent], 0), training=True)
            loss = tf.reduce_mean(tf.nn.softplus(both))
        return tape.gradient(loss, distiller.discriminator.trainable_variables)

    @compiles
    def search(data, images, noise):
        batch = distiller.unpack(data)
        with tf.GradientTape() as tape:
            divergent = distiller.generate(images, noise)
            inputs = distiller.from_range(divergent)
            logits = [student(inputs, training=False) for student in distiller.students]
            terms = distiller.restrict(batch, images, divergent, logits)
            verdict = tf.reduce_mean(tf.nn.softplus(-distiller.discriminator(divergent)))
            loss = verdict + sum(value for _, value in terms.values())
        return tape.gradient(loss, distiller.generator.trainable_variables)

    @compiles
    def learn(data):
        batch = distiller.unpack(data)
        with tf.GradientTape() as tape:
            logits = distiller.observe_students(batch)
            terms = distiller.teach_on_divergent(batch, logits)
            loss = sum(value for _, value in terms.values())
        return tape.gradient(loss, students)

    def run(function, *arguments):
        def step():
            return tf.nest.map_structure(lambda x: x.numpy(), function(*arguments))

        return traced(distiller, step)

    divergent = generate(images, noise)
    steps = {
        "mutual learning": mutual,
        "generate": run(generate, images, noise),
        "discriminate": run(discriminate, images, divergent),
        "search": run(search, data, images, noise),
        "learn": run(learn, data),
    }
    return steps, lambda step, seconds, floor: step / sum(seconds.values())


#: `{id: function}` of the methods whose steps consist of parts worth measuring alone. A function
#: takes `make(**arguments)`, which makes a new distiller, and data. It returns the tuple
#: `(steps, ratio)`: `{name: function}`, and a function of `(seconds of the method's step,
#: {name: seconds}, floor)`, what a step costs over what its parts cost.
PARTS = {
    "ackd": ackd_parts,
    "acn": acn_parts,
    "iakd": iakd_parts,
    "mutual": mutual_parts,
    "sakd": sakd_parts,
}

#: Methods whose steps cost more or less by what is drawn, so that means tell and medians do not.
DRAWN = ("iakd",)


def measure(steps, rounds):
    """Runs all steps in turn and returns `{name: [seconds, ...]}`."""
    for step in steps.values():
        step()
        step()
    seconds = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def measure_memory(names):
    """Takes each of these steps in a process of its own, and prints its peak memory."""
    rows = []
    for name in names:
        command = [sys.executable, *sys.argv, f"--peak={name}", "--nomemory"]
        printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        rows.append([name, float(printed.split()[-1]) / 2**20])
        print(f"{name:20s} {rows[-1][1]:8.0f} MiB", flush=True)
    if FLAGS.output:
        columns = {"step": "", "peak memory, MiB": ".0f"}
        title = f"{pair()} a step: peak memory of a process that takes it three times"
        measurements.write(FLAGS.output, title, columns, rows)


def pair():
    """Returns what is measured, in words."""
    size = f"{FLAGS.batch_size} images of 32x32"
    return f"{FLAGS.teacher} teaches {FLAGS.student}, {FLAGS.precision}, {size}"


def main(arguments):
    """Measures and prints."""
    del arguments
    methods = []
    for name in FLAGS.method.split(","):
        methods += tfkd.losses.available() if name == "all" else [name]
    shape = (32, 32, 3)

    def create(name, precision=FLAGS.precision):
        keras.config.set_dtype_policy(precision)
        model = tfkd.models.create(name, num_classes=FLAGS.classes, input_shape=shape)
        keras.config.set_dtype_policy(FLAGS.precision)
        return model

    random = np.random.default_rng(0)
    images = tf.constant(random.normal(size=(FLAGS.batch_size, *shape)), "float32")
    # As many examples as CIFAR-100 has, for the losses that remember every one.
    all_labels = random.integers(0, FLAGS.classes, 50_000)
    labels = tf.constant(all_labels[: FLAGS.batch_size])
    data = tf.data.Dataset.from_tensors((images, labels)).repeat()
    index = tf.range(FLAGS.batch_size, dtype="int64")
    indexed = tf.data.Dataset.from_tensors((images, {"label": labels, "index": index})).repeat()
    source = types.SimpleNamespace(train_labels=lambda: all_labels, mean=0.0, std=1.0)
    teacher = create(FLAGS.teacher)

    @functools.cache
    def two_teachers():
        return tfkd.models.ensemble([teacher, create(FLAGS.teacher)])

    makers = {
        "keras step": lambda: training_step(compiled(create(FLAGS.student, "float32")), data),
        "student step": lambda: training_step(
            compiled(tfkd.KnowledgeDistiller(create(FLAGS.student))), data
        ),
        "teacher inference": lambda: inference(teacher, images),
    }
    taught, parts_of = {}, {}
    for method in methods:
        settings = tfkd_config.default_config(method, FLAGS.teacher, FLAGS.student)

        def make(settings=settings, **arguments):
            settings = settings.copy_and_resolve_references()
            settings.method.arguments.update(arguments)
            others = [create(name) for name in peers(settings)]
            taken = two_teachers() if weighs_teachers(settings) else teacher
            teachers = taken if needs_teacher(settings.method) else None
            return assemble.make_distiller(
                settings, source, create(FLAGS.student), teachers, others
            )

        if needs_teacher(settings.method):
            taught[method] = 2 if weighs_teachers(settings) else 1
        batches = indexed if needs_indices(settings) else data
        makers[method] = lambda make=make, batches=batches: training_step(compiled(make()), batches)
        if settings.method.distiller in PARTS:
            parts_of[method] = (settings.method.distiller, make, batches)
        if method == "kd":

            def cached_step(make=make):
                """The step on batches that carry the teacher's logits, as from a cache."""
                outputs = {"logits": measures.forward(teacher)(images)}
                batch = images, {"label": labels, "teacher": outputs}
                return training_step(compiled(make()), tf.data.Dataset.from_tensors(batch).repeat())

            makers["kd cached"] = cached_step
    if FLAGS.keras:
        makers["keras.distillation"] = lambda: training_step(
            compiled(keras_distiller(create(FLAGS.student), create(FLAGS.teacher))), data
        )
    if FLAGS.peak:
        step = makers[FLAGS.peak]()
        for _ in range(3):
            step()
        print(measures.peak_memory())
        return
    if FLAGS.memory:
        measure_memory(makers)
        return

    steps = {name: make_step() for name, make_step in makers.items()}
    expected = {}
    for method, (distiller, make, batches) in parts_of.items():
        parts, ratio = PARTS[distiller](make, batches)
        steps |= {f"{method}: {name}": step for name, step in parts.items()}
        expected[method] = (distiller, list(parts), ratio)

    seconds = measure(steps, FLAGS.rounds)
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    floors = {
        method: medians["student step"] + teachers * medians["teacher inference"]
        for method, teachers in {**taught, "keras.distillation": 1}.items()
        if method in medians
    }
    over_keras = medians["student step"] / medians["keras step"]
    print(f"training step over Keras: {over_keras:.3f}")
    for method, floor in floors.items():
        print(f"{method}: step over floor {medians[method] / floor:.3f}")
    if "kd" in methods:
        ratio = medians["kd cached"] / medians["student step"]
        print(f"kd cached: step over training step {ratio:.3f}")
    means = {name: float(np.mean(values)) for name, values in seconds.items()}
    for method, (distiller, parts, ratio) in expected.items():
        typical, word = (means, "mean") if distiller in DRAWN else (medians, "median")
        alone = {part: typical[f"{method}: {part}"] for part in parts}
        found = ratio(typical[method], alone, floors.get(method))
        print(f"{method}: {word} step over its parts measured alone {found:.3f}")
    print(
        f"\n{FLAGS.teacher} -> {FLAGS.student}, batch {FLAGS.batch_size}, {FLAGS.precision}, "
        f"{FLAGS.rounds} rounds, milliseconds:"
    )
    rows = []
    for name, values in seconds.items():
        low, middle, high = np.percentile(values, [10, 50, 90]) * 1000
        line = f"{name:20s} median {middle:8.1f}   10..90 % {low:8.1f} .. {high:8.1f}"
        line += f"   {FLAGS.batch_size / medians[name]:8.0f} images/s"
        print(line, flush=True)
        if name in makers:
            over = medians[name] / floors[name] if name in floors else None
            numbers = [middle, low, high, FLAGS.batch_size / medians[name], over]
            rows.append([name, *(number and round(number, 4) for number in numbers)])
    if FLAGS.output:
        title = f"{pair()} a step, {FLAGS.rounds} rounds: median, 10th and 90th percentile"
        measurements.write(FLAGS.output, title, COLUMNS, rows)


if __name__ == "__main__":
    try:
        app.run(main)
    except UsageError as error:
        raise SystemExit(f"error: {error}") from None
