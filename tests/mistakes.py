"""What users get wrong, and what they are told: the table behind the test of mistakes.

`benchmarks/mistakes.py` prints it.
"""

import pathlib

import keras

import tfkd

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = f"--config={ROOT}/configs/digits.py:teacher=resnet14,student=resnet8,runlocal"


def method(text):
    """Returns the flag that picks a method."""
    return f"{CONFIG},method={text}"


def teacher(name):
    """Returns the flag that picks a teacher's file."""
    return CONFIG.replace("teacher=resnet14", f"teacher={{files}}/{name}")


def student(name):
    """Returns the flag that picks a student."""
    return CONFIG.replace("student=resnet8", f"student={name}")


def make_files(folder):
    """Makes the files that mistakes need; `{files}` in an argument is their folder."""
    zoo = {"num_classes": 10, "input_shape": (8, 8, 1)}
    (folder / "empty.keras").write_bytes(b"")
    (folder / "broken.keras").write_bytes(b"PK\x03\x04 not an archive")
    (folder / "folder.keras").mkdir()
    (folder / "file").write_text("in the way")
    (folder / "something_else").mkdir()
    (folder / "something_else" / "student.keras").write_text("precious")
    for name, text in {
        "syntax": "def get_config(:\n",
        "nothing": "x = 1\n",
        "raises": "def get_config(arguments=''):\n    return 1 / 0\n",
        "dictionary": "def get_config(arguments=''):\n    return {'epochs': 3}\n",
        "sparse": (
            "from ml_collections import ConfigDict\n"
            "def get_config(arguments=''):\n    return ConfigDict({'epochs': 3})\n"
        ),
    }.items():
        (folder / f"{name}.py").write_text(text)
    tfkd.models.create("resnet8", seed=0, **{**zoo, "num_classes": 7}).save(folder / "few.keras")
    large = {**zoo, "input_shape": (16, 16, 3)}
    tfkd.models.create("resnet8", seed=0, **large).save(folder / "large.keras")
    model = tfkd.models.create("resnet8", seed=0, **zoo)
    outputs = keras.layers.Softmax()(model.output)
    keras.Model(model.input, outputs).save(folder / "soft.keras")
    keras.Model(model.input, [model.output, model.output]).save(folder / "two.keras")


#: `{what: (arguments, regular expression of the line that is printed)}`.
MISTAKES = {
    # Flags.
    "no such flag": ([CONFIG, "--epochs=3"], "set as --config.epochs="),
    "flag with a slip": ([CONFIG, "--wrokdir=x"], "'wrokdir'; did you mean --workdir.$"),
    "flag of nothing": ([CONFIG, "--lr=1"], "'lr': --help shows all; .* set as --config.KEY="),
    "flag of a device": (
        [CONFIG, "--gpu=0"],
        "--strategy and --repl.*CUDA_VISIBLE_DEVICES=0 in",
    ),
    "key of a device": ([CONFIG, "--config.gpus=2"], "gpus; devices are .*CUDA_VISIBLE_DEVICES=0"),
    "flag of a method": ([CONFIG, "--method=at"], "picked after the colon of --config.*method=kd"),
    "flag of a part": (
        [CONFIG, "--batch_size=8"],
        "'batch_size': values .* set as --config.data.batch_size=...$",
    ),
    "flag of a loss": (
        [CONFIG, "--temperature=3"],
        "set as --config.method.losses.kd.temperature=...$",
    ),
    "flag of two parts": (
        [CONFIG, "--learning_rate=3"],
        "--config.optimizer.learning_rate=... or --config.teacher.learning_rate=...$",
    ),
    "flag of the teacher's images": (
        [CONFIG, "--teacher_preprocessing=x"],
        "'teacher_preprocessing': .*--config.teacher.image_size",
    ),
    "key of the teacher's images": (
        [CONFIG, "--config.teacher.preprocessing=x"],
        "preprocessing; .*--config.teacher.image_size",
    ),
    "argument of the teacher's images": (
        [method("kd:teacher_preprocessing=x")],
        "no argument of a method here: .*--config.teacher.image_size",
    ),
    "config argument of the teacher's images": (
        [f"{CONFIG},teacher_preprocessing=x"],
        "no argument of a config: .*--config.teacher.image_size",
    ),
    "argument without --": ([CONFIG, "digits"], "Unexpected argument 'digits'"),
    "strategy": ([CONFIG, "--strategy=horovod"], "Unknown strategy 'horovod': .*one_device"),
    "parameter server": (
        [CONFIG, "--strategy=parameter_server"],
        "'parameter_server' is not supported: Keras 3 does not train under parameter servers",
    ),
    "workers": ([CONFIG, "--strategy=multi_worker"], "needs the workers .* TF_CONFIG"),
    "accumulation": (
        [CONFIG, "--config.accumulation_steps=0"],
        "accumulation_steps must be at least 1; received 0",
    ),
    "no epochs": ([CONFIG, "--config.epochs=None"], "--config.epochs needs a value; received None"),
    "no replicas": ([CONFIG, "--replicas=0"], "replicas=0"),
    "replicas as a word": ([CONFIG, "--replicas=two"], "replicas=two"),
    "two replicas of one device": (
        [CONFIG, "--strategy=one_device", "--replicas=2"],
        "'one_device' has 1 replica, not 2: use mirrored",
    ),
    "precision": ([CONFIG, "--precision=float8"], "precision=float8.*mixed_bfloat16"),
    "no work directory": ([CONFIG, "--workdir="], "--workdir=DIR is missing"),
    "work directory is a file": ([CONFIG, "--workdir={files}/file"], "--workdir=.*file is a file"),
    "work directory under a file": (
        [CONFIG, "--workdir={files}/file/run"],
        "file is a file; choose another directory",
    ),
    "work directory of something else": (
        [CONFIG, "--workdir={files}/something_else"],
        "holds student.keras, but of no run",
    ),
    "data directory is a file": ([CONFIG, "--data_dir={files}/file"], "files/file"),
    # Config files and their arguments.
    "no config": (["--config="], "config"),
    "no such config": (["--config=configs/none.py"], "No such file .*none.py"),
    "config is a directory": (["--config={files}"], "files"),
    "config with a syntax error": (
        ["--config={files}/syntax.py"],
        "invalid syntax in line 1 of .*syntax.py",
    ),
    "config without get_config": (
        ["--config={files}/nothing.py"],
        "file without a function get_config",
    ),
    "config that fails": (["--config={files}/raises.py"], "ZeroDivisionError: division by zero"),
    "config that is a dictionary": (["--config={files}/dictionary.py"], "ConfigDict"),
    "config without the values of a run": (
        ["--config={files}/sparse.py"],
        "has no accumulation_steps, check, data, .*: start it with",
    ),
    "config argument": ([f"{CONFIG},metod=kd"], "Unknown config argument 'metod'"),
    "config argument's value": ([f"{CONFIG},runlocal=maybe"], "runlocal is true or false"),
    "key": ([CONFIG, "--config.epohcs=3"], "epochs.*instead of.*epohcs"),
    "key of the optimizer": ([CONFIG, "--config.optimizer.name=adam"], "name"),
    "type": ([CONFIG, "--config.epochs=three"], "config.epochs=three"),
    "type of a rate": ([CONFIG, "--config.optimizer.learning_rate=fast"], "learning_rate=fast"),
    "whole part of the config": ([CONFIG, "--config.method=at"], "picked by --config=FILE:method="),
    "name of the method alone": (
        [CONFIG, "--config.method.name=at"],
        "is that of another method: .*digits.py:method=at",
    ),
    # Methods.
    "method": (
        [method("kdd")],
        "Unknown method 'kdd': it must be one of alone, .*kd",
    ),
    "method in capitals": ([method("KD")], "Unknown method 'KD': .*; did you mean 'kd'.$"),
    "method with a slip": ([method("akcd")], "; did you mean 'ackd' or .*"),
    "alone and more": ([method("kd+alone")], "Unknown method 'alone': .* one of ab, "),
    "loss twice": ([method("kd+kd")], "names a loss twice"),
    "argument of a method": (
        [method("ackd:atention=logit")],
        "Unknown argument of method 'ackd' 'atention': .*attention",
    ),
    "argument of alone": ([method("alone:temperature=2")], "'alone' has no arguments"),
    "argument without a value": ([method("kd:kd.temperature")], "kd.temperature needs a value"),
    "argument of a wrong type": ([method("kd+at:at.weight=many")], "at.weight must be a number"),
    "losses of a method": ([method("ackd+at")], "Method 'ackd' takes no losses"),
    "optimizer of a method": (
        [method("ackd"), "--config.method.optimizers.discriminator_optimizer.name=adm"],
        "Unknown optimizer 'adm': it must be one of .*adam",
    ),
    "argument of an optimizer": (
        [method("sakd"), "--config.method.optimizers.policy_optimizer.momentum=2.0"],
        "momentum",
    ),
    "loss of another method": ([CONFIG, "--config.method.losses.at.weight=5.0"], "at"),
    "temperature": ([CONFIG, "--config.method.losses.kd.temperature=0.0"], "temperature must be"),
    "temperature of NaN": ([CONFIG, "--config.method.losses.kd.temperature=nan"], "temperature"),
    "weight of a loss": ([CONFIG, "--config.method.losses.kd.weight=-1.0"], "weight must be"),
    "weight of NaN": ([CONFIG, "--config.method.losses.kd.weight=nan"], "weight must be"),
    "tap": (
        [method("at"), "--config.method.losses.at.spots=(('stage9','stage1'),)"],
        "no tap 'stage9'; it has stem, stage1, stage2, stage3, pooled, logits",
    ),
    "spots": ([method("at"), "--config.method.losses.at.spots=('stage1',)"], "pairs"),
    "fsp of different widths": (
        [method("fsp").replace("resnet14", "wrn_16_2")],
        "width|channels",
    ),
    "labels mixed for crd": ([method("crd"), "--config.data.mixup=0.2"], "mixup"),
    "preparation": ([method("ft"), "--config.method.preparation_epochs=0"], "preparation_epochs"),
    "auxiliary learners": ([method("ackd:auxiliary_learners=7")], "auxiliary_learners must be"),
    "attention": ([method("ackd:attention=logits")], "Unknown .*attention.*logit"),
    "adversarial weight": ([method("ackd:adversarial_weight=-1.0")], "adversarial_weight must"),
    "adversarial ramp": (
        [method("ackd"), "--config.method.arguments.adversarial_ramp=nan"],
        "adversarial_ramp must",
    ),
    "decisions": ([method("sakd:decisions=maybe")], "Unknown value of decisions 'maybe'.*policy"),
    "routing scale": ([method("sakd:routing_scale=0.5")], "routing_scale must be at least 1"),
    "spot temperature": ([method("sakd:gumbel_temperature=0")], "gumbel_temperature must be"),
    "share of kept blocks": ([method("iakd:start=2.0")], "start must be a number between 0 and 1"),
    "sampling": ([method("iakd:sampling=each")], "Unknown sampling 'each'.*batch"),
    "milestones of iakd": ([method("iakd:milestones=(0.9,0.1)")], "milestones are increasing"),
    "granularity": ([method("iakd:granularity=layer")], "granularity"),
    "peer": ([method("mutual:peers=resnet7")], "Unknown peer 'resnet7'.*student"),
    "no peers": ([method("mutual:peers=")], "needs peers: .*student"),
    "peer as a number": ([method("mutual:peers=2")], "peers must be a word, like 'student'"),
    "targets": ([method("mutual:targets=median")], "Unknown targets 'median'"),
    "mutual temperature": ([method("mutual:temperature=0.0")], "temperature must be"),
    "residual": ([method("acn:residual=strong")], "Unknown residual 'strong'.*weak_skip"),
    "residual weight": ([method("acn:residual_weight=2.0")], "residual_weight must"),
    "warm-up of acn": ([method("acn:warm_up=-1")], "warm_up must"),
    "adversarial epochs": ([method("acn:adversarial_every=1")], "adversarial_every must"),
    "noise": ([method("acn:noise_size=0")], "noise_size must"),
    # Models.
    "student": ([student("resnet7")], "Unknown model 'resnet7'.*resnet8"),
    "student without punctuation": (
        [student("mobilenetv2")],
        "Unknown model 'mobilenetv2': .*; did you mean 'mobilenet_v2'.$",
    ),
    "student as a file": ([student("student.keras")], "Model student.keras does not exist"),
    "student of other images": (
        [student("{files}/large.keras")],
        "takes images of 16x16x3, and those of the data are 8x8x1: set .*image_size=16.$",
    ),
    "student of no module": ([student("no_such:small")], "module 'no_such' cannot be imported"),
    "peers of a file": (
        [method("mutual").replace("=resnet8", "={files}/few.keras")],
        "would have the very weights of the student; name a function",
    ),
    "module to import": ([CONFIG, "--imports=no_such"], "--imports=no_such cannot be imported"),
    "width of a resnet": ([student("resnet8"), "--config.student.arguments.width=0.5"], "width"),
    "teacher": ([CONFIG.replace("resnet14", "resnet7")], "Unknown model 'resnet7'"),
    "teacher's file": ([teacher("none.keras")], "Teacher .*none.keras does not exist"),
    "teacher's empty file": ([teacher("empty.keras")], "empty.keras cannot be read as a Keras"),
    "teacher's broken file": ([teacher("broken.keras")], "broken.keras cannot be read as a Keras"),
    "teacher's file is a folder": ([teacher("folder.keras")], "folder.keras .*it is a directory"),
    "teacher of other classes": (
        [teacher("few.keras")],
        r"'kd' compares logits .*\(None, 10\) and teacher logits \(None, 7\): both .* the same",
    ),
    "teacher with a softmax": ([teacher("soft.keras")], "needs logits"),
    "teacher of two outputs": ([teacher("two.keras")], "two.keras has 2 outputs: it must have one"),
    "teacher of other images": (
        [teacher("large.keras")],
        "takes images of 16x16x3, the student 8x8x1: set --config.teacher.image_size=16,",
    ),
    "teacher of images of another size than set": (
        [teacher("large.keras"), "--config.teacher.image_size=12"],
        "16x16x3, and --config.teacher.image_size=12 makes 12x12x3: set .*image_size=16",
    ),
    "teacher's images": (
        [CONFIG, "--config.teacher.image_size=16"],
        "teacher.image_size describes the images of a given teacher",
    ),
    "teacher's own images without their size": (
        [teacher("large.keras"), "--config.teacher.from_original=True"],
        "teacher.from_original cuts .* in its own size: set --config.teacher.image_size too",
    ),
    "several teachers' own images": (
        [
            teacher("large.keras+{files}/few.keras"),
            "--config.teacher.image_size=16",
            "--config.teacher.from_original=True",
        ],
        "teacher.from_original is for one teacher; several get the student's",
    ),
    "shifts of images that the teacher sees in another size": (
        [
            teacher("large.keras"),
            "--config.teacher.image_size=16",
            "--config.teacher.from_original=True",
        ],
        "teacher_image_size: 'crop' moves whole pixels of the student's size, .* 'resized_crop'",
    ),
    # Data.
    "data set": ([CONFIG, "--config.data.name=mnistt"], "Unknown data set 'mnistt'.*digits"),
    "data set's folder": ([CONFIG, "--config.data.name=./none"], "none"),
    "batch": ([CONFIG, "--config.data.batch_size=4096"], "batch_size=4096 is more than"),
    "batch of nothing": (
        [CONFIG, "--config.data.batch_size=0"],
        "batch_size must be .* at least 1",
    ),
    "too many examples": (
        [CONFIG, "--config.data.train_examples=5000"],
        "train_examples=5000 is more than",
    ),
    "augmentation": ([CONFIG, "--config.data.augment=('blur',)"], "blur.*crop"),
    "mixup": ([CONFIG, "--config.data.mixup=-1.0"], "mixup must be a number of at least 0"),
    "validation": ([CONFIG, "--config.data.validation=1.5"], "validation"),
    "diagnostics without validation": (
        [CONFIG, "--config.diagnostics=True", "--config.data.validation=0.0"],
        "diagnostics looks at validation images: set --config.data.validation above 0",
    ),
    "validation of NaN": ([CONFIG, "--config.data.validation=nan"], "validation must be"),
    "image size": ([CONFIG, "--config.data.image_size=0"], "image_size must be .* at least 1"),
    "images too small": ([CONFIG, "--config.data.image_size=1"], "1"),
    # Numbers of the protocol.
    "epochs": ([CONFIG, "--config.epochs=0"], "epochs must be at least 1; received 0"),
    "negative epochs": (
        [CONFIG, "--config.teacher.epochs=-3"],
        "teacher.epochs must be at least 1",
    ),
    "rate": ([CONFIG, "--config.optimizer.learning_rate=-1.0"], "learning_rate must be above 0"),
    "rate of NaN": (
        [CONFIG, "--config.optimizer.learning_rate=nan"],
        "learning_rate must be above",
    ),
    "infinite rate": ([CONFIG, "--config.optimizer.learning_rate=inf"], "learning_rate must be"),
    "momentum": ([CONFIG, "--config.optimizer.momentum=1.5"], "momentum must be from 0 to 1"),
    "weight decay": ([CONFIG, "--config.optimizer.weight_decay=inf"], "weight_decay must be"),
    "milestones": ([CONFIG, "--config.schedule.milestones=(150,)"], "increasing fractions"),
    "milestones as words": (
        [CONFIG, "--config.schedule.milestones=('a',)"],
        "increasing fractions",
    ),
    "schedule": ([CONFIG, "--config.schedule.name=linear"], "Unknown learning-rate schedule"),
    "factor of the schedule": ([CONFIG, "--config.schedule.factor=nan"], "factor must be"),
    "warm-up": ([CONFIG, "--config.schedule.warmup=1.5"], "warmup is a fraction of the run"),
    "select": ([CONFIG, "--config.select=first"], "select must be last or best"),
    "seed": ([CONFIG, "--config.seed=-1"], "seed must be"),
    "large seed": ([CONFIG, "--config.seed=4294967296"], "seed must be"),
}


def arguments(mistake, files, **directories):
    """Returns the arguments of a mistake, completed by the flags that are no part of it.

    Args:
        mistake: String, a key of `MISTAKES`.
        files: Path of the folder that `make_files` has filled.
        **directories: `workdir` and `data_dir`.
    """
    given = [argument.replace("{files}", str(files)) for argument in MISTAKES[mistake][0]]
    for flag, path in directories.items():
        if not any(argument.startswith(f"--{flag}=") for argument in given):
            given.append(f"--{flag}={path}")
    return given


#: Those found only once data and models are there, for tests that have time: each has a unit test
#: of its message beside what it is about.
LATE = [
    "adversarial ramp",
    "adversarial epochs",
    "adversarial weight",
    "attention",
    "argument of an optimizer",
    "decisions",
    "granularity",
    "images too small",
    "milestones as words",
    "milestones of iakd",
    "mutual temperature",
    "no peers",
    "noise",
    "residual",
    "residual weight",
    "routing scale",
    "sampling",
    "schedule",
    "share of kept blocks",
    "spot temperature",
    "peers of a file",
    "spots",
    "student as a file",
    "student of no module",
    "student of other images",
    "targets",
    "teacher of images of another size than set",
    "teacher of two outputs",
    "teacher's broken file",
    "teacher's file is a folder",
    "temperature",
    "temperature of NaN",
    "warm-up",
    "warm-up of acn",
    "weight of NaN",
]
