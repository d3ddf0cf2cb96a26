"""What must hold of every notebook as a file, and what nbval lets through in silence.

A rule is a function that takes a notebook and returns its complaints. Each is tried on a notebook that breaks it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

from conftest import TAG

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
from notebooks import clean, execute, write  # noqa: E402
from setup_cell import read_home, setup_cell  # noqa: E402

NOTEBOOKS = sorted((ROOT / "book").glob("*.ipynb"))
TAGS = {"hide-cell", "hide-input", "hide-output", "remove-cell", "remove-input", "remove-output"}
MAGICS = {"%matplotlib inline", "%config InlineBackend.figure_formats = ['svg']"}
MAX_LINES = 25
MAX_BYTES = 1_500_000
MAX_DIGITS = 4
FLOAT = re.compile(r"(?<![\w.])[-+]?(\d+\.\d*|\.\d+|\d+(?=[eE][-+]?\d))(?:[eE][-+]?\d+)?")
LOCAL_PATH = re.compile(r"(?<![\w.])(?:/(?:home|Users|root|tmp|private|mnt|opt)/\w|[A-Z]:\\\w)")
COLAB = re.compile(r"https://colab\.research\.google\.com/\S*?(?=[)\"'\s]|$)")

Rule = Callable[[NotebookNode, str], list[str]]
RULES: list[Rule] = []


def rule(function: Rule) -> Rule:
    RULES.append(function)
    return function


def code_cells(notebook: NotebookNode) -> list[tuple[int, NotebookNode]]:
    return [(index, cell) for index, cell in enumerate(notebook.cells) if cell.cell_type == "code"]


def prose(notebook: NotebookNode) -> Iterator[tuple[int, str]]:
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            yield index, cell.source


def printed(cell: NotebookNode) -> Iterator[str]:
    """The text and the tables that a cell shows; of a figure, which has its own text form, nothing."""
    for output in cell.outputs:
        if output.output_type == "stream":
            yield output.text
        elif "data" in output and not any(kind.startswith("image/") for kind in output.data):
            yield output.data.get("text/markdown", output.data.get("text/plain", ""))


@rule
def valid_and_without_volatile_metadata(notebook: NotebookNode, name: str) -> list[str]:
    """As `make notebooks` writes it."""
    try:
        nbformat.validate(notebook)
    except nbformat.ValidationError as error:
        return [f"not a valid notebook: {error}"]
    if clean(nbformat.from_dict(notebook)) != notebook:
        return ["metadata is not what `make notebooks` writes; run it"]
    return []


@rule
def run_once_from_top_to_bottom(notebook: NotebookNode, name: str) -> list[str]:
    """nbval does not look at the outputs of a cell without an execution count."""
    counts = [cell.execution_count for _, cell in code_cells(notebook)]
    if counts != list(range(1, len(counts) + 1)):
        return [f"cells are numbered {counts}, not 1 to {len(counts)}; run `make notebooks`"]
    return []


@rule
def no_errors_and_no_warnings(notebook: NotebookNode, name: str) -> list[str]:
    complaints = []
    for index, cell in code_cells(notebook):
        for output in cell.outputs:
            if output.output_type == "error":
                complaints.append(f"cell {index} shows an error: {output.ename}")
            elif output.get("name") == "stderr":
                complaints.append(f"cell {index} writes to stderr: {output.text[:80]!r}")
    return complaints


@rule
def tags_are_known(notebook: NotebookNode, name: str) -> list[str]:
    """A misspelt tag does nothing, and nbval's own tags or comments switch the comparison off."""
    complaints = []
    for index, cell in enumerate(notebook.cells):
        for tag in cell.metadata.get("tags", []):
            if tag not in TAGS and not TAG.fullmatch(tag):
                complaints.append(f"cell {index} has the tag {tag!r}; known are {sorted(TAGS)} and rtol-0.05")
        if cell.cell_type == "code" and re.search(r"^\s*#\s*(NBVAL|PYTEST_VALIDATE)", cell.source, re.M | re.I):
            complaints.append(f"cell {index} switches nbval off by a comment")
    return complaints


@rule
def no_shell_and_no_magic(notebook: NotebookNode, name: str) -> list[str]:
    """A failed ``!`` passes, and a cell with an unknown magic is skipped whole."""
    complaints = []
    for index, cell in code_cells(notebook):
        for line in cell.source.splitlines():
            if line.lstrip().startswith(("!", "%")) and line.strip() not in MAGICS:
                complaints.append(f"cell {index}: {line.strip()!r}")
    return complaints


@rule
def no_semicolon_at_the_end(notebook: NotebookNode, name: str) -> list[str]:
    """It hides a value from a reader, and not from nbval, whose kernel shows it: assign the value to _."""
    return [f"cell {index} ends in ';'" for index, cell in code_cells(notebook) if cell.source.rstrip().endswith(";")]


@rule
def what_is_made_to_be_shown_is_shown(notebook: NotebookNode, name: str) -> list[str]:
    """The package's source on a page is a cell's value: assigned to _, nothing is on the page."""
    calls = [(index, cell) for index, cell in code_cells(notebook) if "plotting.source(" in cell.source]
    return [f"cell {index} does not show its source" for index, cell in calls if "```python" not in str(cell.outputs)]


@rule
def few_digits(notebook: NotebookNode, name: str) -> list[str]:
    """Digits beyond the fourth change from machine to machine."""
    complaints = []
    for index, cell in code_cells(notebook):
        for text in printed(cell):
            for match in FLOAT.finditer(text):
                if len(match.group(1).replace(".", "").lstrip("0")) > MAX_DIGITS:
                    complaints.append(f"cell {index} prints {match.group(0)}: more than {MAX_DIGITS} digits")
    return complaints


@rule
def figures_have_alt_text(notebook: NotebookNode, name: str) -> list[str]:
    """The default is a file name. One text serves one figure, so a cell shows one."""
    complaints = []
    for index, cell in code_cells(notebook):
        figures = [o for o in cell.outputs if any(kind.startswith("image/") for kind in o.get("data", {}))]
        alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
        if figures and len(alt.split()) < 4:
            complaints.append(f"cell {index} shows a figure and its metadata mystnb.image.alt does not describe it")
        if len(figures) > 1:
            complaints.append(f"cell {index} shows {len(figures)} figures with one alt text")
    for index, source in prose(notebook):
        if re.search(r"!\[\s*\]\(", source) or re.search(r"<img(?![^>]*\balt=\"[^\"]+)", source):
            complaints.append(f"cell {index} has an image without alt text")
    return complaints


@rule
def cells_are_short(notebook: NotebookNode, name: str) -> list[str]:
    lengths = [(index, len(cell.source.splitlines())) for index, cell in code_cells(notebook)]
    return [f"cell {index} has {n} lines, more than {MAX_LINES}" for index, n in lengths if n > MAX_LINES]


@rule
def one_import_for_each_module(notebook: NotebookNode, name: str) -> list[str]:
    complaints = []
    for index, cell in code_cells(notebook)[1:]:
        modules = re.findall(r"^from (flowbook\S*) import", cell.source, re.M)
        if modules != sorted(set(modules)):
            complaints.append(f"cell {index} imports from {modules}; expected each once, in the order of their names")
    return complaints


@rule
def small(notebook: NotebookNode, name: str) -> list[str]:
    size = len(nbformat.writes(notebook).encode())
    return [f"{size} bytes, more than {MAX_BYTES}"] if size > MAX_BYTES else []


@rule
def colab_opens_this_file(notebook: NotebookNode, name: str) -> list[str]:
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["repository"]
    repository = config["url"].removeprefix("https://github.com/")
    here = f"{repository}/blob/{config['branch']}/{config['path_to_book']}/{name}"
    expected = f"https://colab.research.google.com/github/{here}"
    links = [link for _, source in prose(notebook) for link in COLAB.findall(source)]
    if not links:
        return [f"no Colab link; expected {expected}"]
    return [f"the Colab link is {link}; expected {expected}" for link in links if link != expected]


@rule
def setup_comes_first_and_is_the_same_everywhere(notebook: NotebookNode, name: str) -> list[str]:
    cells = code_cells(notebook)
    if not cells or cells[0][1].source != setup_cell(read_home()):
        return ["the first code cell is not the one that `python scripts/setup_cell.py` prints"]
    return []


@rule
def threads_are_set_once(notebook: NotebookNode, name: str) -> list[str]:
    """By the setup cell. Two threads beside another notebook wait for each other: that took four times as long."""
    later = [(index, cell) for index, cell in code_cells(notebook)[1:] if "set_num_threads" in cell.source]
    return [f"cell {index} sets the number of threads" for index, cell in later]


@rule
def something_is_asserted(notebook: NotebookNode, name: str) -> list[str]:
    if not any(re.search(r"^\s*assert ", cell.source, re.M) for _, cell in code_cells(notebook)):
        return ["no cell asserts anything"]
    return []


@rule
def no_local_paths(notebook: NotebookNode, name: str) -> list[str]:
    complaints = []
    for index, cell in enumerate(notebook.cells):
        texts = [cell.source, *(printed(cell) if cell.cell_type == "code" else [])]
        for text in texts:
            if match := LOCAL_PATH.search(text):
                complaints.append(f"cell {index} names a path of one machine: {match.group(0)}...")
            elif str(ROOT) in text:
                complaints.append(f"cell {index} names the folder of this copy")
    return complaints


def tags_of_equations(notebook: NotebookNode) -> list[str]:
    return [tag for _, source in prose(notebook) for tag in re.findall(r"\\tag\{([1-5]\.\d+)\}", source)]


def references_to_equations(notebook: NotebookNode) -> list[tuple[int, str]]:
    found = []
    for index, source in prose(notebook):
        text = re.sub(r"\$\$.*?\$\$|\$[^$]*\$|```.*?```|`[^`]*`", " ", source, flags=re.S)
        found += [(index, number) for number in re.findall(r"\(([1-5]\.\d+)\)", text)]
    return found


def equation_complaints(notebooks: dict[str, NotebookNode]) -> list[str]:
    tags = [tag for notebook in notebooks.values() for tag in tags_of_equations(notebook)]
    complaints = [f"\\tag{{{tag}}} is used {tags.count(tag)} times" for tag in set(tags) if tags.count(tag) > 1]
    for name, notebook in notebooks.items():
        for index, number in references_to_equations(notebook):
            if number not in tags:
                complaints.append(f"{name}: cell {index} refers to ({number}), which no equation has as its tag")
    return complaints


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


@pytest.mark.parametrize("check", RULES, ids=lambda check: check.__name__)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_rule(path: Path, check: Rule) -> None:
    assert check(read(path), path.name) == []


def test_every_equation_that_is_referred_to_has_its_tag() -> None:
    assert equation_complaints({path.name: read(path) for path in NOTEBOOKS}) == []


def test_every_notebook_is_in_the_table_of_contents() -> None:
    toc = (ROOT / "book" / "_toc.yml").read_text(encoding="utf-8")
    assert NOTEBOOKS
    assert [path.name for path in NOTEBOOKS if f"file: {path.stem}\n" not in toc] == []


# `make notebooks` ---------------------------------------------------------------------------------------------------


def test_executing_stores_outputs_numbers_the_cells_and_gives_the_same_file_again(tmp_path: Path) -> None:
    path = tmp_path / "one.ipynb"
    cells = [nbformat.v4.new_code_cell(source) for source in ("x = 2", "print('a')\nprint('b', x)\nx")]
    cells[0].metadata = {"tags": ["hide-input"], "collapsed": True, "execution": {"iopub.status.busy": "today"}}
    write(nbformat.v4.new_notebook(cells=cells, metadata={"widgets": {}}), path)
    execute(path)
    once = path.read_bytes()
    execute(path)
    assert path.read_bytes() == once
    notebook = read(path)
    assert run_once_from_top_to_bottom(notebook, path.name) == []
    assert valid_and_without_volatile_metadata(notebook, path.name) == []
    assert notebook.cells[0].metadata == {"tags": ["hide-input"]}
    assert list(printed(notebook.cells[1])) == ["a\nb 2\n", "2"]


def test_a_notebook_that_raises_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "one.ipynb"
    write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")]), path)
    before = path.read_bytes()
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        execute(path)
    assert path.read_bytes() == before


# The rules on notebooks that break them ---------------------------------------------------------------------------

NAME = "03_example.ipynb"


def good() -> NotebookNode:
    """A notebook that keeps every rule."""
    repository = read_home().removeprefix("https://github.com/")
    link = f"[Open in Colab](https://colab.research.google.com/github/{repository}/blob/main/book/{NAME})"
    setup = nbformat.v4.new_code_cell(setup_cell(read_home()), execution_count=1)
    figure = nbformat.v4.new_output("display_data", {"image/png": "iVBORw0KGgo=", "text/plain": "<Figure size 1x1>"})
    last = nbformat.v4.new_code_cell("assert 1 < 2\nprint(0.5, 12345)", execution_count=2, outputs=[figure])
    last.outputs.append(nbformat.v4.new_output("stream", name="stdout", text="0.5 12345\n"))
    last.metadata = {"tags": ["hide-input", "rtol-0.05"], "mystnb": {"image": {"alt": "A point that is not there."}}}
    text = nbformat.v4.new_markdown_cell("$$a = b \\tag{3.1}$$\nBy (3.1), $f(2.5) = 1$ and `g(1.5)`.")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(link), setup, text, last])
    return clean(nbformat.from_dict(notebook))


def broken(change: Callable[[NotebookNode], Any]) -> NotebookNode:
    notebook = good()
    change(notebook)
    return notebook


def output_of(text: str, name: str = "stdout") -> Callable[[NotebookNode], Any]:
    return lambda nb: nb.cells[3].outputs.append(nbformat.v4.new_output("stream", name=name, text=text))


def table(markdown: str) -> NotebookNode:
    return nbformat.v4.new_output("display_data", {"text/markdown": markdown, "text/plain": "<Markdown object>"})


def source_of(cell: int, source: str) -> Callable[[NotebookNode], Any]:
    return lambda nb: nb.cells[cell].update(source=source)


BAD: list[tuple[Rule, Callable[[NotebookNode], Any]]] = [
    (valid_and_without_volatile_metadata, lambda nb: nb.cells[1].metadata.update(execution={"started": "today"})),
    (valid_and_without_volatile_metadata, lambda nb: nb.metadata.update(widgets={})),
    (valid_and_without_volatile_metadata, lambda nb: nb.cells[1].update(outputs=[{"output_type": "nonsense"}])),
    (run_once_from_top_to_bottom, lambda nb: nb.cells[3].update(execution_count=None)),
    (run_once_from_top_to_bottom, lambda nb: nb.cells[3].update(execution_count=7)),
    (no_errors_and_no_warnings, output_of("Warning!", name="stderr")),
    (
        no_errors_and_no_warnings,
        lambda nb: nb.cells[3].outputs.append(nbformat.v4.new_output("error", ename="E", evalue="", traceback=[])),
    ),
    (tags_are_known, lambda nb: nb.cells[3].metadata.update(tags=["hide_input"])),
    (tags_are_known, lambda nb: nb.cells[3].metadata.update(tags=["nbval-skip"])),
    (tags_are_known, lambda nb: nb.cells[3].metadata.update(tags=["rtol-5%"])),
    (tags_are_known, source_of(3, "# NBVAL_IGNORE_OUTPUT\nassert True")),
    (no_shell_and_no_magic, source_of(3, "!pip install something")),
    (no_shell_and_no_magic, source_of(3, "%%time\nassert True")),
    (no_shell_and_no_magic, source_of(3, "%autoreload 2")),
    (no_semicolon_at_the_end, source_of(3, "assert True\nlist([1]);")),
    (what_is_made_to_be_shown_is_shown, source_of(3, "assert True\n_ = plotting.source(solve)")),
    (few_digits, output_of("loss 0.123456")),
    (few_digits, output_of("1.23456e-05")),
    (few_digits, output_of("12345.0")),
    (few_digits, lambda nb: nb.cells[3].outputs.append(table("| 0.123456 |"))),
    (figures_have_alt_text, lambda nb: nb.cells[3].metadata.pop("mystnb")),
    (figures_have_alt_text, lambda nb: nb.cells[3].metadata.update(mystnb={"image": {"alt": "figure"}})),
    (figures_have_alt_text, lambda nb: nb.cells[3].outputs.append(nb.cells[3].outputs[0])),
    (figures_have_alt_text, source_of(2, "![](_static/picture.png)")),
    (figures_have_alt_text, source_of(2, '<img src="_static/picture.png">')),
    (cells_are_short, source_of(3, "a = 1\n" * 26)),
    (
        one_import_for_each_module,
        source_of(3, "from flowbook.models import MLP\nfrom flowbook.models import UNet\nassert True"),
    ),
    (
        one_import_for_each_module,
        source_of(3, "from flowbook.models import MLP\nfrom flowbook.cnf import log_prob\nassert 1"),
    ),
    (small, output_of("x" * MAX_BYTES)),
    (colab_opens_this_file, source_of(0, "no link")),
    (
        colab_opens_this_file,
        lambda nb: nb.cells[0].update(source=nb.cells[0].source.replace("03_example", "02_another")),
    ),
    (setup_comes_first_and_is_the_same_everywhere, source_of(1, "import torch")),
    (threads_are_set_once, source_of(3, "torch.set_num_threads(2)\nassert True")),
    (something_is_asserted, source_of(3, "# assert nothing\nprint(1)")),
    (no_local_paths, source_of(3, "open('/home/someone/data')")),
    (no_local_paths, output_of("saved in /Users/someone/grid.png")),
    (no_local_paths, output_of(f"saved in {ROOT}/grid.png")),
]


@pytest.mark.parametrize("check", RULES, ids=lambda check: check.__name__)
def test_a_good_notebook_keeps_every_rule(check: Rule) -> None:
    assert check(good(), NAME) == []


@pytest.mark.parametrize(("check", "change"), BAD, ids=[check.__name__ for check, _ in BAD])
def test_the_rule_catches_what_it_is_for(check: Rule, change: Callable[[NotebookNode], Any]) -> None:
    assert check(broken(change), NAME) != []


def test_every_rule_has_an_example_that_breaks_it() -> None:
    assert {check.__name__ for check, _ in BAD} == {check.__name__ for check in RULES}


def test_equations_are_referred_to_by_their_tags() -> None:
    assert equation_complaints({"one": good()}) == []
    assert equation_complaints({"one": broken(source_of(2, "By (3.2) it follows."))}) != []
    assert equation_complaints({"one": good(), "two": good()}) != [], "one tag in two chapters"
