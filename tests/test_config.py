import json
import pathlib
import runpy
import sys

import pytest
import tiny

import tfkd_cli
from tfkd import config, distillers, methods
from tfkd.errors import UsageError
from tfkd.runs import assemble, guard

DEFAULTS = {"method": "kd", "runlocal": False}
FOLDER = pathlib.Path(__file__).parents[1] / "configs"
CONFIGS = sorted(FOLDER.rglob("*.py"))


def test_arguments_take_the_type_of_their_default():
    found = config.parse_arguments(
        "method=at,runlocal,epochs=3", method="kd", runlocal=False, epochs=1
    )
    assert found == {"method": "at", "runlocal": True, "epochs": 3}
    assert config.parse_arguments("", a=1) == {"a": 1}
    assert config.parse_arguments("runlocal=false", runlocal=True) == {"runlocal": False}


def test_commas_in_parentheses_do_not_split():
    found = config.parse_arguments("method=iakd:milestones=(0.5,0.75),runlocal", **DEFAULTS)
    assert found == {"method": "iakd:milestones=(0.5,0.75)", "runlocal": True}
    assert methods.split_at_commas("a,b:c=(1,2),d") == ["a", "b:c=(1,2)", "d"]


@pytest.mark.parametrize(
    "text, message",
    [
        ("metod=kd", "Unknown config argument 'metod': it must be one of method, runlocal, epochs"),
        ("runlocal=maybe", "runlocal is true or false; received 'maybe'"),
        ("epochs=three", "epochs takes a value like 1; received 'three'"),
    ],
)
def test_wrong_arguments(text, message):
    with pytest.raises(UsageError, match=message):
        config.parse_arguments(text, method="kd", runlocal=False, epochs=1)


def write(path, **values):
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


def test_a_config_comes_back_from_the_json_of_its_run(tmp_path):
    made = config.default_config("kd+at:at.spots=(('a', 'b'),)", "t.keras", "resnet8", {"at": {}})
    made.student.arguments = {"width": 0.5}
    made.more = {"own": 1}
    path = tmp_path / "config.json"
    path.write_text(guard.as_json(made), encoding="utf-8")
    found = config.from_json(path)
    assert found.to_dict() == made.to_dict()
    # Values that are not set have their types, so that flags can set them.
    assert found.get_type("seed") is int and found.data.get_type("augment") is tuple


def test_a_json_config_needs_only_what_differs(tmp_path):
    values = {"method": {"name": "ackd"}, "student": {"model": "resnet8"}, "teacher": {}}
    found = config.from_json(write(tmp_path / "mine.json", epochs=3, **values))
    wanted = config.default_config("ackd", "", "resnet8")
    wanted.epochs = 3
    assert found.to_dict() == wanted.to_dict()


def test_modules_of_the_user_are_imported(tmp_path, monkeypatch):
    (tmp_path / "my_methods_of_a_test.py").touch()
    values = {"method": {"name": "alone"}, "student": {"model": "resnet8"}, "teacher": {}}
    path = write(tmp_path / "a.json", imports=["my_methods_of_a_test"], config=values)
    with pytest.raises(UsageError, match="needs your module 'my_methods_of_a_test', .* PYTHONPATH"):
        config.from_json(path)
    monkeypatch.syspath_prepend(tmp_path)
    assert config.from_json(path).method.name == "alone"
    assert sys.modules.pop("my_methods_of_a_test")


@pytest.mark.parametrize(
    "values, message",
    [
        ({}, "holds no config"),
        ({"config": 1}, "holds no config"),
        ({"method": {"name": "me"}}, "Unknown method 'me'.* module of yours .*from_json"),
        ({"method": {"name": "kd"}, "epochs": "three"}, "three"),
    ],
)
def test_wrong_json(values, message, tmp_path):
    models = {"student": {"model": "resnet8"}, "teacher": {"model": "resnet20"}}
    with pytest.raises(UsageError, match=message):
        config.from_json(write(tmp_path / "a.json", **values, **models))
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(UsageError, match="holds no config"):
        config.from_json(tmp_path / "a.json")
    with pytest.raises(UsageError, match="b.json cannot be read: No such file"):
        config.from_json(tmp_path / "b.json")


def test_kd_alone_shares_the_weight_and_as_a_companion_adds_to_the_labels():
    alone, companion = methods.method_config("kd"), methods.method_config("kd+at")
    assert alone.arguments.student_loss_weight == 0.1 and alone.losses.kd.weight == 0.9
    assert companion.arguments.student_loss_weight == 1.0 and companion.losses.kd.weight == 1.0
    assert companion.losses["at"].weight == 1000.0
    assert methods.method_config("alone").losses.to_dict() == {}


def test_a_task_can_change_the_weight_of_a_loss():
    made = methods.method_config("kd+at", {"at": {"weight": 3.0}, "ft": {"weight": 5.0}})
    assert made.losses["at"].weight == 3.0 and made.losses.kd.weight == 1.0
    assert set(made.losses) == {"kd", "at"}


def test_arguments_of_a_method_follow_after_colons():
    made = methods.method_config("ackd:attention=logit:temperature=3", {"ackd": {"kd_weight": 2.0}})
    assert (made.distiller, dict(made.losses)) == ("ackd", {})
    assert made.arguments.attention == "logit" and made.arguments.kd_weight == 2.0
    assert type(made.arguments.temperature) is float and made.arguments.temperature == 3.0
    assert made.optimizers.discriminator_optimizer.learning_rate == 1e-4
    made = methods.method_config("kd+at:student_loss_weight=0.5:at.weight=500")
    assert made.arguments.student_loss_weight == 0.5 and made.losses["at"].weight == 500.0
    assert made.distiller is None
    assert "stages" not in methods.method_config("ackd").arguments
    made = methods.method_config("ackd:stages=('stage1','stage3')")
    assert tuple(made.arguments.stages) == ("stage1", "stage3")
    assert methods.method_config("iakd:milestones=(0.5,0.75)").arguments.milestones == (0.5, 0.75)


@pytest.mark.parametrize(
    "name, message",
    [
        ("ackd:atention=logit", "Unknown argument of method 'ackd' 'atention': it must be one of"),
        ("ackd:attention", "attention needs a value, such as attention=channel"),
        ("ackd:auxiliary_learners=1.0", "auxiliary_learners must be a whole number, like -1"),
        ("sakd+ackd", "'ackd' in 'sakd.ackd' is a method: it comes first"),
        ("at+sakd", "'sakd' in 'at.sakd' is a method: it comes first"),
        ("ackd:heat=3", "must be one of temperature, kd_weight"),
        ("ackd:temperature=warm", "temperature must be a number, like 4.0; received 'warm'"),
        ("kd:at.weight=3", "must be one of student_loss_weight, kd.temperature, kd.weight"),
        ("alone:weight=3", "Method 'alone' has no arguments"),
        ("ackd+kd", "Method 'ackd' takes no losses; received kd"),
    ],
)
def test_wrong_arguments_of_a_method(name, message):
    with pytest.raises(UsageError, match=message):
        methods.method_config(name)


def test_a_config_describes_a_distiller_and_its_optimizers():
    made = config.default_config("ackd:attention=uniform", "resnet20", "resnet8")
    distiller = assemble.make_distiller(made, None, tiny.model(), tiny.model(seed=1))
    assert isinstance(distiller, distillers.ACKD) and distiller.attention == "uniform"
    distiller.compile("sgd", **made.method.optimizers.to_dict())
    assert float(distiller.discriminator_optimizer.beta_1) == 0.5


def test_settings_of_several_ids_hold_for_methods_that_have_them_all():
    settings = {"sakd+at": {"sakd": {"routing_scale": 2.0}}, "at": {"weight": 3.0}}
    settings["sakd+fitnet"] = {"fitnet": {"weight": 7.0}}
    found = {name: methods.method_config(name, settings) for name in ("at", "sakd", "sakd+rkd+at")}
    assert found["at"].losses["at"].weight == 3.0 and "routing_scale" not in found["at"].arguments
    assert (
        found["sakd"].arguments.routing_scale == found["sakd+rkd+at"].arguments.routing_scale == 2
    )
    assert methods.method_config("sakd+rkd", settings).arguments.routing_scale == 1.0
    assert methods.method_config("fitnet", settings).losses.fitnet.weight == 1.0
    assert methods.method_config("sakd+fitnet", settings).losses.fitnet.weight == 7.0


def test_sakd_reads_its_arguments_from_the_command_line():
    name = "sakd+kd+at:decisions=random:homogeneous=False:at.weight=5:kd.temperature=2"
    made = config.default_config(name, "resnet20", "resnet8")
    assert made.method.losses.kd.weight == 1.0
    assert made.method.optimizers.policy_optimizer.relative_learning_rate == 0.5
    distiller = assemble.make_distiller(made, None, tiny.model(), tiny.model(seed=1))
    assert distiller.decisions == "random"
    weights = {loss.id: loss.weight for loss in distiller.distillation_losses}
    assert weights == {"kd": 1.0, "at": 5.0}
    with pytest.raises(UsageError, match="homogeneous must be a word, like 'auto'"):
        methods.method_config("sakd:homogeneous=3")


@pytest.mark.parametrize("name", ["kdd", "kd+nothing", ""])
def test_an_unknown_method_names_those_that_exist(name):
    with pytest.raises(UsageError, match=r"Unknown method .* one of (alone, )?.*kd"):
        methods.method_config(name)


def test_a_distiller_has_the_configured_losses():
    made = config.default_config("kd+at", "resnet20", "resnet8")
    made.method.losses.kd.temperature = 2.5
    distiller = assemble.make_distiller(made, None, tiny.model(), tiny.model(seed=1))
    found = {loss.id: loss for loss in distiller.distillation_losses}
    assert set(found) == {"kd", "at"}
    assert (found["kd"].temperature, found["kd"].weight) == (2.5, 1.0)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_file_takes_the_same_arguments(path):
    get_config = runpy.run_path(str(path))["get_config"]
    text = "method=kd,teacher=resnet14,student=resnet8,runlocal"
    made = get_config(text)
    assert (made.teacher.model, made.student.model) == ("resnet14", "resnet8")
    assert made.epochs <= 2 and get_config().epochs > 2
    assert get_config("teacher=some/teacher.keras").teacher.path == "some/teacher.keras"
    with pytest.raises(UsageError, match="Unknown config argument 'speed'"):
        get_config("speed=3")


def test_configs_of_tfkd_have_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # Anywhere.
    names = {path.relative_to(FOLDER).with_suffix("").as_posix() for path in CONFIGS}
    assert set(tfkd_cli.configs()) == names
    assert pathlib.Path(config.find("digits")) == FOLDER / "digits.py"
    assert pathlib.Path(config.find("studies/cifar100_10k")).is_file()
    assert config.find("my/config.py") == "my/config.py"
    with pytest.raises(UsageError, match="Unknown config 'digit': .*'digits'"):
        config.find("digit")


def test_cifar100_has_the_spot_adaptive_study_per_loss_and_pair():
    get_config = runpy.run_path(str(CONFIGS[0].with_name("cifar100.py")))["get_config"]

    def facts(text):
        made = get_config(text)
        scale = made.method.arguments.routing_scale
        return (
            scale,
            made.optimizer.learning_rate,
            made.data.batch_size,
            made.student.arguments.to_dict(),
        )

    assert facts("method=sakd+at") == (2.0, 0.05, 64, {})
    assert facts("method=sakd+crd,student=shufflenet_v1") == (1.0, 0.01, 64, {})
    assert facts("method=sakd+nst,student=shufflenet_v1") == (1.0, 0.01, 32, {})
    wide = {"width": 1.0}
    assert facts("method=sakd+nst,teacher=resnet50,student=mobilenet_v2") == (1, 0.01, 32, wide)
    assert facts("method=sakd+rkd,teacher=vgg13,student=mobilenet_v2") == (2.0, 0.01, 64, wide)
    assert get_config("method=kd,student=mobilenet_v2").student.arguments.to_dict() == {}


def test_imagenet_keeps_its_protocol():
    get_config = runpy.run_path(str(CONFIGS[0].with_name("imagenet.py")))["get_config"]
    made = get_config("")
    kd = made.method.losses.kd
    assert (kd.temperature, kd.weight, made.method.arguments.student_loss_weight) == (1, 0.5, 0.5)
    assert (made.data.name, made.data.batch_size, made.optimizer.learning_rate) == (
        "imagenet2012",
        256,
        0.1,
    )
    assert [made.epochs * share for share in made.schedule.milestones] == [30, 60, 90]
    joined = get_config("method=kd+at,data=imagenette")
    assert joined.method.arguments.student_loss_weight == 1.0
    assert joined.data.name == "imagenette"
    betas = {
        student: get_config(f"method=dkd,student={student}").method.losses.dkd.beta
        for student in ("resnet18_imagenet", "mobilenet_v1")
    }
    assert betas == {"resnet18_imagenet": 0.5, "mobilenet_v1": 2.0}


def test_settings_reach_the_optimizers_of_a_method():
    settings = {"acn": {"noise_size": 3, "generator_optimizer": {"learning_rate": 0.5}}}
    method = methods.method_config("acn", settings)
    assert method.arguments.noise_size == 3
    assert method.optimizers.generator_optimizer.to_dict() == {
        "name": "adam",
        "learning_rate": 0.5,
        "beta_1": 0.5,
    }
    assert method.optimizers.discriminator_optimizer.learning_rate == 2e-4


class OwnDistiller(distillers.KnowledgeDistiller):
    id = "own_for_tests"


def test_a_subclass_of_the_distiller_of_losses_has_its_losses():
    assert list(methods.method_config("own_for_tests").losses) == ["kd"]
    assert list(methods.method_config("own_for_tests+at").losses) == ["at"]
