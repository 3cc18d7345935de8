"""The notebooks in colab/ are whole, readable in review, and do what they say."""

import ast
import importlib
import re

import nbformat
import pytest
from commands import REPOSITORY, ROOT

import tfkd

NOTEBOOKS = sorted((ROOT / "colab").glob("*.ipynb"))
COLAB = (
    "https://colab.research.google.com/github/"
    f"{REPOSITORY.removeprefix('https://github.com/')}/blob/main/{{path}}"
)
BADGE = f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({COLAB})"
INSTALL = f"""\
try:
    import tfkd
except ImportError:
    %pip install --quiet git+{REPOSITORY}"""

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])


def python_of(cell):
    """Returns the Python of a code cell: without magics, and of a written file its contents."""
    lines = cell.source.splitlines()
    if lines[0].startswith("%%"):
        lines = lines[1:]
    return "\n".join(re.sub(r"^(\s*)[%!].*", r"\1pass", line) for line in lines)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_they_are_numbered():
    assert [path.stem[0] for path in NOTEBOOKS] == list("12345678")


@each_notebook
def test_a_notebook_is_whole_and_has_no_outputs(path):
    text = path.read_text(encoding="utf-8")
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    assert len(text) < 50_000
    assert all(not cell.outputs and cell.execution_count is None for cell in code_cells(notebook))
    # Names instead of random ids: a change shows in review as the change of one cell.
    identifiers = [cell.id for cell in notebook.cells]
    assert len(set(identifiers)) == len(identifiers)
    assert notebook.metadata.kernelspec.name == "python3"


@each_notebook
def test_a_notebook_begins_with_its_badge_and_installs_once(path):
    first, second, *others = nbformat.read(path, as_version=4).cells
    assert first.source.startswith("# ")
    assert BADGE.format(path=f"colab/{path.name}") in first.source
    assert second.source == INSTALL
    assert not any("pip install" in cell.source for cell in others if cell.cell_type == "code")
    assert others[-1].source.startswith("## What to try next")


@each_notebook
def test_the_code_of_a_notebook_compiles_and_names_what_exists(path):
    chains = set()
    for cell in code_cells(nbformat.read(path, as_version=4)):
        tree = ast.parse(python_of(cell), filename=f"{path.name}:{cell.id}")
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and re.fullmatch(r"tfkd(\.\w+)+", ast.unparse(node)):
                chains.add(ast.unparse(node))
            elif isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "tfkd":
                for name in node.names:
                    # A submodule that nobody has imported is no attribute yet.
                    found = hasattr(importlib.import_module(node.module), name.name)
                    assert found or importlib.import_module(f"{node.module}.{name.name}")
    assert len(chains) > 3
    for chain in chains:
        found = tfkd
        for name in chain.split(".")[1:]:
            assert hasattr(found, name), chain
            found = getattr(found, name)


@each_notebook
def test_the_links_of_a_notebook_lead_somewhere(path):
    text = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells)
    for link in re.findall(re.escape(f"{REPOSITORY}/blob/main/") + r"([^)#\s]+)", text):
        assert (ROOT / link).exists(), link


def test_a_page_shows_all_of_them():
    page = (ROOT / "docs" / "tutorials.md").read_text(encoding="utf-8")
    for path in NOTEBOOKS:
        assert f"[open in Colab]({COLAB.format(path=f'colab/{path.name}')})" in page
        assert f"({REPOSITORY}/blob/main/colab/{path.name})" in page


@pytest.mark.slow
@each_notebook
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    from nbclient import NotebookClient

    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    # The tests' own, which have no notebook to show figures in.
    monkeypatch.delenv("MPLBACKEND", raising=False)
    folder = tmp_path / "notebook"
    folder.mkdir()
    notebook = nbformat.read(path, as_version=4)
    # Raises CellExecutionError with the traceback where a cell fails.
    NotebookClient(
        notebook, timeout=1800, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "Traceback" not in printed
