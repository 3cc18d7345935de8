"""README.md and the pages in docs/ do what they say."""

import importlib
import inspect
import pathlib
import re
import shlex
import subprocess

import keras
import pytest
from absl import flags
from commands import ROOT, call

import tfkd
import tfkd_cli
from tfkd import chain, check, compare, config, methods, train
from tfkd.runs import chains

PAGES = {path.name: path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
TEXTS = {name: path.read_text(encoding="utf-8") for name, path in PAGES.items()}
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)

#: Pages whose Python is run with the fast tests; that of the others takes minutes in sum.
FAST = ("README.md",)

#: Where losses distil by default, in the words of their page.
PLACES = {
    "logits": "logits",
    "teachers": "logits of all teachers",
    "pooled": "pooled vector",
    "last_map": "last map",
    "before_pooling": "map before pooling",
    "hint": "second stage",
    "stages": "all stages",
    "before_relu": "all stages, before their last ReLU",
    "after_relu+pooled": "all stages and the pooled vector",
    "last_two_maps+pooled+logits": "last two maps, pooled vector, logits",
}


def blocks(name, language):
    return [body for kind, body in BLOCK.findall(TEXTS[name]) if kind == language]


def with_python():
    return [
        pytest.param(name, marks=() if name in FAST else pytest.mark.slow)
        for name in PAGES
        if blocks(name, "python")
    ]


def commands():
    """Yields the commands of all pages as a shell reads them, variables and all."""
    # A shell in which commands tell what they were called with.
    told = """
        tell() { printf "%s\\0" "$@" $'\\n'; }
        for command in python tfkd make; do eval "$command() { tell $command \\"\\$@\\"; }"; done
        taskset() { shift 2; "$@"; }
        pip() { :; }
    """
    for name in PAGES:
        for block in blocks(name, "shell"):
            # One after the other, where they are to run at once.
            block = re.sub(" &$", "", block, flags=re.MULTILINE)
            output = subprocess.run(
                ["bash", "-e", "-c", told + block], capture_output=True, text=True, check=True
            ).stdout
            for line in output.split("\0\n\0")[:-1]:
                words = line.split("\0")
                yield pytest.param(words, id=f"{name}: {shlex.join(words)[:90]}")


COMMANDS = list(commands())
#: Commands that take a config and train, and what they run.
TRAINS = {
    "tfkd.train": train.train,
    "tfkd.compare": compare.main,
    "tfkd.chain": chain.main,
    "tfkd.check": check.check,
}


def module_and_flags(words):
    """Splits a command into the module that it runs, None for make, and its arguments."""
    program, *rest = words
    if program == "make":
        return None, rest
    if rest[0].endswith(".py"):
        return rest[0], rest[1:]
    if program == "tfkd":
        return f"tfkd.{rest[0]}", rest[1:]
    module, arguments = rest[1], rest[2:]
    if module == "tfkd.local_workers" and "--" in arguments:
        # What the workers run.
        return module_and_flags(arguments[arguments.index("--") + 1 :])
    return module, arguments


def trains_by_itself(words):
    """Whether a command trains, and reads nothing that another has left."""
    if words[0] != "python" or "-m" not in words:
        return False
    module, arguments = module_and_flags(words)
    return module in TRAINS and not any("best_config.json" in argument for argument in arguments)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A folder of its own, for the files that a page writes and reads."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    for name in ("teacher", "my"):
        tfkd.models.create("resnet14", 10, (8, 8, 1)).save(f"{name}.keras")
    return tmp_path


def _before_report():
    """Makes the runs that the page shows."""
    small = [f"--config={ROOT}/configs/digits.py:runlocal,teacher=resnet8", *SMOKE]
    small.append("--data_dir=tfds")
    call(compare.main, *small, "--methods=alone,kd", "--seeds=1", "--workdir=runs/demo")
    small[0] += ",method=dkd"
    call(train.train, *small, "--workdir=runs/digits-dkd")


@pytest.mark.parametrize("name", with_python())
def test_python_runs(name, elsewhere, capsys):
    before = globals().get(f"_before_{pathlib.Path(name).stem}")
    if before:
        before()
    page = {}
    for block in blocks(name, "python"):
        exec(compile(block, name, "exec"), page)
    if (elsewhere / "student.keras").exists() and "student" in page:
        saved = keras.models.load_model(elsewhere / "student.keras")
        assert saved.count_params() == page["student"].count_params()
    more = globals().get(f"_of_{pathlib.Path(name).stem}")
    if more:
        more(page, capsys.readouterr().out)


def _of_sakd(page, printed):
    assert [spot for spot, _ in page["distiller"].spots][-2:] == ["pooled", "logits"]
    assert "logits [" in printed


def _of_your_own_models(page, printed):
    assert [student for student, _ in page["pairs"]] == ["stage1", "stage2", "stage3"]
    assert page["pairs"][-1][1] == "out_relu"
    assert any("near chance" in warning for warning in page["report"].warnings)
    assert set(page["report"].losses) == {"student_loss", "kd_loss", "at_loss"}
    assert str(page["report"]) in printed
    assert page["student"].input_shape == (None, 32, 32, 1)


def _of_ackd(page, _):
    assert {"val_accuracy", "val_fused_accuracy"} <= page["history"].history.keys()
    fused = keras.models.load_model("fused.keras")
    assert fused.count_params() > page["student"].count_params()


def _of_iakd(page, _):
    assert page["history"]["keep_probability"] == pytest.approx([0.5, 0.75])
    assert {"swapped_share", "swapped_stage1", "swapped_stage3"} <= set(page["history"])
    assert len(page["by_hand"].parts.blocks) == 2


def _of_diagnostics(page, _):
    assert pathlib.Path("run/diagnostics.png").exists()
    # The page tells every log, and no other.
    rows = [
        line.split("|")[1] for line in TEXTS["diagnostics.md"].splitlines() if "| `" in line[:3]
    ]
    told = {name.split("/")[0].strip("` ") for row in rows for name in row.split(", ")}
    plain = {"accuracy", "loss", "student_loss", "distillation_loss", "kd_loss", "at_loss"}
    plain |= {"val_accuracy", "val_loss"}
    assert {name.split("/")[0] for name in page["history"]} - plain == told - {"peer_agreement"}


def _of_tuning(page, _):
    assert page["student"].count_params() == page["teacher"].count_params()
    assert 1 <= page["best"].method.losses.kd.temperature <= 8
    assert pathlib.Path("search/trial_0/student.keras").exists()


def test_the_page_of_losses_tells_where_each_distils():
    for name, loss in tfkd.losses.available().items():
        if not loss.__module__.startswith("tfkd."):
            continue  # Other tests make some.
        place = PLACES[loss.spots]
        (row,) = [
            line for line in TEXTS["losses.md"].splitlines() if line.startswith(f"| {place} |")
        ]
        assert f"`{name}`" in row, name


def test_the_page_of_losses_tells_what_becomes_of_tokens():
    rows = re.findall(r"^\| (.*?) \| (.*?) \|$", TEXTS["losses.md"].split("## Tokens")[1], re.M)
    documented = {name: becomes for names, becomes in rows for name in re.findall("`(.*?)`", names)}
    for name, loss in tfkd.losses.available().items():
        forms = loss.tap_forms()
        if loss.__module__.startswith("tfkd.") and "classes" not in forms:
            assert ("square" in documented[name]) == ("square" in forms), name
            assert ("side by side" in documented[name]) == ("any shape" in forms), name


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_short(name):
    written = re.sub("<!-- study .*?<!-- end of study", "", TEXTS[name], flags=re.DOTALL)
    assert len(re.findall(r"\S*\w\S*", written)) < 1500, "Split it."
    if name == "README.md":
        assert len(TEXTS[name].splitlines()) <= 150


NAVIGATION = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
METHOD_PAGES = re.findall(r"(\w+\.md)", NAVIGATION.split("- Methods:")[1].split("- Results:")[0])


def test_the_site_shows_every_page():
    assert set(re.findall(r": (\w+\.md)", NAVIGATION)) == PAGES.keys() - {"README.md"}


@pytest.mark.parametrize("name", METHOD_PAGES)
def test_a_page_of_a_method_has_the_form_of_all(name):
    """Idea and picture come first."""
    head, *_ = TEXTS[name].partition("\n## ")
    assert "```mermaid" in head
    headings = re.findall(r"^## (.+)$", BLOCK.sub("", TEXTS[name]), flags=re.MULTILINE)
    form = ["Equations", "Use", "Options", "Results", "Cost", "Deviations", "References"]
    assert [one for one in headings if one in form] == form


@pytest.mark.parametrize("name", PAGES)
def test_a_table_has_every_row_once(name):
    for table in re.findall(r"(?:^\|.*\n)+", TEXTS[name], flags=re.MULTILINE):
        rows = table.splitlines()
        assert len(rows) == len(set(rows)), f"{name}: {table}"


@pytest.mark.parametrize("name", PAGES)
def test_lists_follow_an_empty_line(name):
    """The site would show another as a part of the paragraph before it."""
    item = re.compile(r"(- |\d+\. )")
    for paragraph in re.split(r"\n\s*\n", BLOCK.sub("", TEXTS[name])):
        first, *others = paragraph.strip("\n").splitlines() or [""]
        if not item.match(first) and not first.startswith("<!--"):
            assert not any(map(item.match, others)), f"{name}: {paragraph}"


def test_the_page_of_iakd_tells_every_option_and_its_default():
    for name, parameter in list(inspect.signature(tfkd.IAKD).parameters.items())[2:-2]:
        default = str(parameter.default).replace("'", '"')
        shown = f'"{default}"' if isinstance(parameter.default, str) else default
        lines = TEXTS["iakd.md"].splitlines()
        row = next(line for line in lines if line.startswith(f"| `{name}` |"))
        assert row.split("|")[2].strip().strip("`") == shown, name


@pytest.mark.parametrize("words", COMMANDS)
def test_commands_are_taken(words, monkeypatch):
    """Flags, configs, methods and their arguments are what the commands know; nothing is run."""
    monkeypatch.chdir(ROOT)
    module, arguments = module_and_flags(words)
    # A config that another command writes: that of the search has the same values.
    arguments = [re.sub("=runs/.*best_config.json", "=configs/digits.py", one) for one in arguments]
    if module is None:
        assert f"\n{arguments[0]}:" in (ROOT / "Makefile").read_text(encoding="utf-8")
        return
    if module.endswith(".py"):
        # A benchmark, whose flags would stay defined in this process.
        known = re.findall(r'flags\.DEFINE_\w+\(\s*"(\w+)"', (ROOT / module).read_text("utf-8"))
        assert {argument.lstrip("-").partition("=")[0] for argument in arguments} <= set(known)
        return
    importlib.import_module(module)
    if module in TRAINS or module == "tfkd.tune":

        def take(chosen):
            config.check(chosen)
            if module == "tfkd.compare":
                names = methods.split_at_commas(flags.FLAGS.methods)
                assert [methods.method_variant(chosen, name).name for name in names] == names
            if module == "tfkd.chain":
                models = methods.split_at_commas(flags.FLAGS.chain)
                rest = [flags.FLAGS[name].value for name in ("protocol", "anchors", "stop")]
                assert chains.stages_of(chosen, pathlib.Path("runs"), models, *rest)

        call(take, *arguments, needs_workdir=False)
    else:
        assert module.removeprefix("tfkd.") in tfkd_cli.COMMANDS or "." in module.removeprefix(
            "tfkd."
        )


SMOKE = (
    "--config.data.name=digits",
    "--config.data.train_examples=64",
    "--config.data.batch_size=32",
    "--config.data.validation=0.1",
    "--config.epochs=1",
    "--config.teacher.epochs=1",
    "--config.method.preparation_epochs=1",
)


@pytest.mark.slow
@pytest.mark.parametrize("words", [one for one in COMMANDS if trains_by_itself(one.values[0])])
def test_commands_train(words, elsewhere):
    """Training commands run as they stand, but for the data and the number of epochs."""
    module, arguments = module_and_flags(words)
    # A teacher that another line of the page trains; named in the command, or else in its config.
    of_config = re.search(r"--config=([\w/.]+\.py)", " ".join(arguments))
    text = (ROOT / of_config[1]).read_text(encoding="utf-8") if of_config else ""
    named = (re.search(r"""teacher="?([^",:\s]+\.keras)""", one) for one in (*arguments, text))
    teacher = next(filter(None, named), None)
    for path in teacher[1].split("+") if teacher else ():
        folder = pathlib.Path(path).parent
        if not pathlib.Path(path).exists() and f"--workdir={folder}" not in arguments:
            folder.mkdir(parents=True)
            tfkd.models.create("resnet20", 10, (8, 8, 1)).save(path)
    size = re.search(r"teacher\.image_size=(\d+)", " ".join(arguments))
    if size:
        tfkd.models.create("resnet14", 10, (int(size[1]), int(size[1]), 3)).save("teacher.keras")
    more = list(SMOKE)
    if module == "tfkd.compare":
        named = next(a for a in arguments if a.startswith("--methods=")).partition("=")[2]
        # One of each kind: that all arguments are taken has been tested without training.
        more += ["--seeds=1", f"--methods={','.join(methods.split_at_commas(named)[:3])}"]
    if "--protocol=rco" in arguments:
        more += ["--anchors=1"]
    (elsewhere / "configs").symlink_to(ROOT / "configs")
    call(TRAINS[module], *arguments, *more, needs_workdir=module != "tfkd.check")


def test_links_lead_somewhere():
    headings = {}
    for name, text in TEXTS.items():
        titles = re.findall(r"^#+ (.+)$", BLOCK.sub("", text), flags=re.MULTILINE)
        headings[name] = {
            re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles
        }
    for name, text in TEXTS.items():
        for target in re.findall(r"\]\(([^)\s]+)\)", BLOCK.sub("", text)):
            if re.match(r"https?:", target):
                continue
            path, _, anchor = target.partition("#")
            file = (PAGES[name].parent / path).resolve() if path else PAGES[name]
            assert file.exists(), f"{name}: {target}"
            if anchor:
                assert anchor in headings[file.name], f"{name}: {target}"
