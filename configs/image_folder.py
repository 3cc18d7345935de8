"""A folder of photographs, and models of `keras.applications` or of one's own.

`tfkd init DIR` copies this file: edit the copy, or set values on the command line
(`--config.epochs=5`). The images are in FOLDER/train/CLASS/, and in FOLDER/val/CLASS/ and
FOLDER/test/CLASS/ where they are split already: docs/your_own_data.md.

No paper's protocol, and not tuned: AdamW with a warm-up and a cosine, 224 pixels, random resized
crops and flips, as in the usual recipes for photographs.

Command: python -m tfkd.train --config=configs/image_folder.py:pretrained
    --config.data.name=./photos --workdir=runs/photos
Time: made for a GPU.
Result: none here; it depends on the photographs.
"""

from tfkd import config as tfkd_config

#: Models that normalise pixels by themselves.
OWN_PIXELS = ("keras_applications:", "keras_hub:")


def get_config(arguments=""):
    """Returns the config; arguments: method, teacher, student, pretrained, runlocal."""
    config, chosen = tfkd_config.from_arguments(
        arguments,
        # What distils: kd, kd+at, ..., or alone for the labels only; `tfkd describe` lists them.
        method="kd",
        # Trained first on these images. A trained one is given as its file, teacher=my.keras.
        teacher="keras_applications:ResNet50V2",
        # Also my_models:small, a function small(num_classes, input_shape) in my_models.py.
        student="keras_applications:MobileNetV3Small",
        # Whether keras.applications' models begin with the weights of ImageNet, a download.
        pretrained=False,
    )

    # The images. Broken files are left out, and named.
    config.data.name = "./photos"
    config.data.image_size = 224
    config.data.augment = ("resized_crop", "flip")
    config.data.skip_broken = True
    config.data.batch_size = 32
    # Shares of train/ that are set aside, where there is no folder val/ or test/.
    config.data.validation = 0.1
    config.data.test = 0.1
    # True: classes of few images count as much as those of many.
    config.data.balanced = False
    # Others are given images of mean 0 and standard deviation 1.
    models = (chosen["teacher"], chosen["student"])
    config.data.normalize = not all(model.startswith(OWN_PIXELS) for model in models)

    # The training of both models. sgd takes learning rates some 50 times as large.
    config.optimizer.name = "adamw"
    config.optimizer.weight_decay = 0.05
    config.optimizer.learning_rate = config.teacher.learning_rate = 1e-3
    config.optimizer.global_clipnorm = 1.0
    config.schedule.name = "cosine"
    config.schedule.warmup = 0.05
    config.epochs = config.teacher.epochs = 60
    # Training ends after so many epochs without a better validation accuracy:
    # config.patience = 10
    # The student that is kept: of the last epoch, or of the best one in validation.
    config.select = "last"

    if chosen["pretrained"]:
        # The new last layer learns first, and then all layers at a small rate.
        for model in (config.teacher, config.student):
            if model.model.startswith(OWN_PIXELS):
                model.head_epochs = 2
            if "weights" in model.arguments:
                model.arguments.weights = "imagenet"
        config.optimizer.learning_rate = config.teacher.learning_rate = 1e-4
        config.epochs = config.teacher.epochs = 20
    if chosen["runlocal"]:
        # A smoke run, to see that everything fits together.
        config.data.image_size = 64
        config.data.batch_size = 8
        config.epochs = config.teacher.epochs = 1
    return config
