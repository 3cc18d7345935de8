"""What is released: the version, the repository's address, the sdist and the wheel."""

import fnmatch
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile

import pytest
from commands import REPOSITORY, ROOT

import tfkd
import tfkd_cli

#: Where the repository's address is written out.
WITH_ADDRESS = ("README.md", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "SECURITY.md")


def test_one_version_is_said_everywhere():
    assert tfkd.__version__ == tfkd_cli.VERSION
    newest = re.search(r"^## \[(.+)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert newest[1] == tfkd_cli.VERSION


def test_one_address_is_written_everywhere():
    pages = [ROOT / name for name in WITH_ADDRESS]
    pages += [*ROOT.glob("colab/*.ipynb"), *ROOT.glob("docs/*.md"), *ROOT.glob(".github/**/*.*")]
    found = {}
    for page in pages:
        # Colab's links have no ".com".
        for address in re.findall(r"github(?:\.com)?/([\w-]+/tfkd)\b", page.read_text("utf-8")):
            found.setdefault(address, page.name)
    assert found.keys() == {REPOSITORY.removeprefix("https://github.com/")}, found


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"])
def test_what_a_page_names_is_there(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    paths = re.findall(r"`((?:\.ci|configs|docs|tests|tfkd)/[^`]*)`", text)
    paths += [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    assert paths
    for path in paths:
        assert "NAME" in path or (ROOT / path).exists(), path


def files_of(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def copy_repository(to):
    """Copies what a clone holds; builds leave files beside it."""
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    to.mkdir()
    for entry in ROOT.iterdir():
        if any(fnmatch.fnmatch(entry.name, one.strip("/")) for one in (".git", *ignored)):
            continue
        if entry.is_dir():
            shutil.copytree(entry, to / entry.name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(entry, to)


def build(kind, source, to):
    """Calls what `python -m build` calls, without a download."""
    code = f"from setuptools import build_meta; build_meta.build_{kind}({str(to)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True)


@pytest.mark.slow
def test_the_wheel_of_the_sdist_works_where_it_is_installed(tmp_path):
    clone, release = tmp_path / "clone", tmp_path / "release"
    copy_repository(clone)
    release.mkdir()
    there = files_of(clone)
    build("sdist", clone, release)
    (sdist,) = release.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "unpacked")
    (source,) = (tmp_path / "unpacked").iterdir()
    assert source.name == f"tfkd-{tfkd_cli.VERSION}"
    # So its tests, its demo and its docs are made as those of a clone.
    assert there <= files_of(source)

    build("wheel", source, release)
    (wheel,) = release.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    package = {f"tfkd/{name}" for name in files_of(clone / "tfkd")}
    configs = {f"tfkd/configs/{name}" for name in files_of(clone / "configs")}
    assert packed == {*package, *configs, "tfkd_cli.py"}

    venv.create(tmp_path / "fresh", with_pip=True)
    scripts = tmp_path / "fresh" / "bin"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def run(program, *arguments):
        return subprocess.run(
            [scripts / program, *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    run("python", "-m", "pip", "install", "--no-index", "--no-deps", wheel)
    # What tfkd depends on is borrowed from here. Below a path that a .pth file adds no other .pth
    # file is read, so that a tfkd which is installed here as editable is not.
    (site,) = (tmp_path / "fresh").glob("lib/python*/site-packages")
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    found = run("python", "-c", "import importlib.util as u; print(u.find_spec('tfkd').origin)")
    assert found.startswith(str(site))
    assert run("tfkd", "--version") == f"tfkd {tfkd_cli.VERSION}\n"
    assert run("tfkd", "--help") == tfkd_cli.usage() + "\n"
    assert "KnowledgeDistillation" in run("tfkd", "describe", "kd")
    # Configs have come along.
    checked = run("tfkd", "check", "--config=digits:runlocal", f"--data_dir={tmp_path / 'data'}")
    assert "kd_loss" in checked
