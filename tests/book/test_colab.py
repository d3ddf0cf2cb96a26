"""A notebook alone, as Colab opens it: an empty folder, torch and the rest installed, flowbook not.

The environment is a new one that sees the outer one's packages, all but flowbook, through links. The package comes
from a git address on this machine, and pip may not ask any index: what is there must be enough and must stay.
"""

from __future__ import annotations

import ast
import importlib.metadata
import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
from setup_cell import UNSET, setup_cell  # noqa: E402

NOTEBOOKS = sorted((ROOT / "book").glob("*.ipynb"))
PACKAGE = ("flowbook", "pyproject.toml", "README.md", "LICENSE")
REPORT = """
import json, flowbook
from importlib.metadata import version
print(json.dumps({"flowbook": flowbook.__file__, "torch": version("torch"), "numpy": version("numpy")}))
"""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The package as it is now, committed to a repository of its own."""
    repository = tmp_path_factory.mktemp("repository")
    ignore = ["--exclude=__pycache__", "--exclude=*.egg-info"]
    tar = subprocess.run(["tar", "-cf", "-", *ignore, *PACKAGE], cwd=ROOT, capture_output=True, check=True).stdout
    subprocess.run(["tar", "-xf", "-"], cwd=repository, input=tar, check=True)
    git = ["git", "-C", str(repository), "-c", "user.name=test", "-c", "user.email=test@example.invalid"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "add", "--all"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--message", "the package"], check=True)
    return repository.as_uri()


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """An environment of the test's own."""
    return environment(tmp_path)


@pytest.fixture(scope="module")
def installed(address: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """An environment in which the setup cell has installed the package, and what it printed."""
    folder = tmp_path_factory.mktemp("installed")
    python = environment(folder)
    return python, run([setup_cell(UNSET), REPORT], python, folder / "empty", address)


def environment(tmp_path: Path) -> Path:
    """The Python of an environment that has everything but flowbook."""
    folder = tmp_path / "environment"
    venv.create(folder, with_pip=False)
    links = tmp_path / "packages"
    links.mkdir()
    for site in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for entry in Path(site).iterdir():
            # .pth files would bring flowbook's editable install; the rest is linked as it is.
            if "flowbook" not in entry.name and entry.suffix != ".pth" and not (links / entry.name).exists():
                (links / entry.name).symlink_to(entry)
    python = folder / "bin" / "python"
    query = "import sysconfig; print(sysconfig.get_path('purelib'))"
    inner = subprocess.run([python, "-c", query], capture_output=True, text=True, check=True).stdout.strip()
    (Path(inner) / "links.pth").write_text(f"{links}\n", encoding="utf-8")
    return python


def run(sources: list[str], python: Path, folder: Path, home: str | None) -> list[str]:
    """Execute code cells with this Python in an empty folder; what each cell prints."""
    folder.mkdir()
    specs = folder.parent / "kernels"
    (specs / "colab").mkdir(parents=True, exist_ok=True)
    command = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    # pip's own way to say "no build isolation" in the environment is a 0.
    settings = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PYTHONPATH": ""}
    if home is not None:
        settings["FLOWBOOK_HOME"] = home
    spec = {"argv": command, "display_name": "colab", "language": "python", "env": settings}
    (specs / "colab" / "kernel.json").write_text(json.dumps(spec), encoding="utf-8")
    manager = AsyncKernelManager(
        kernel_name="colab", kernel_spec_manager=KernelSpecManager(kernel_dirs=[str(specs)], ensure_native_kernel=False)
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    NotebookClient(notebook, km=manager, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    return ["".join(o.get("text", "") for o in cell.outputs) for cell in notebook.cells]


def imports(path: Path) -> str:
    """The imports of a notebook's code cells."""
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    statements = [node for source in cells[1:] for node in ast.parse(source).body]
    return "\n".join(ast.unparse(node) for node in statements if isinstance(node, ast.Import | ast.ImportFrom))


def installed_in(python: Path) -> list[str]:
    """What was put into the environment itself, beside what it borrows."""
    site = next(python.parent.parent.glob("lib/python*/site-packages"))
    return sorted(entry.name.split("-")[0] for entry in site.glob("*.dist-info"))


def assert_report(report: str, python: Path) -> None:
    found = json.loads(report)
    assert Path(found["flowbook"]).is_relative_to(python.parent.parent), "flowbook comes from another environment"
    for name in ("torch", "numpy"):
        assert found[name] == importlib.metadata.version(name)
    assert installed_in(python) == ["flowbook"], "something that was there has been installed again"


def test_the_setup_cell_installs_what_is_missing_and_nothing_else(installed: tuple[Path, list[str]]) -> None:
    python, printed = installed
    assert printed[0] == ""
    assert_report(printed[1], python)


def test_every_notebook_starts_from_its_file_alone(installed: tuple[Path, list[str]], tmp_path: Path) -> None:
    """One kernel for all of them: each notebook's setup cell, and all that it imports. An error shows the cell."""
    sources = []
    for path in NOTEBOOKS:
        cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        sources += [cells[0], f"# {path.name}\n{imports(path)}"]
    printed = run([*sources, REPORT], installed[0], tmp_path / "empty", None)
    assert_report(printed[-1], installed[0])


def test_without_an_address_nothing_is_installed(outside: Path, tmp_path: Path) -> None:
    with pytest.raises(CellExecutionError, match="flowbook is not installed and has no public address yet"):
        run([setup_cell(UNSET)], outside, tmp_path / "empty", None)
    assert installed_in(outside) == []


def test_an_address_that_does_not_answer_stops_the_notebook(outside: Path, tmp_path: Path) -> None:
    with pytest.raises(CellExecutionError, match="CalledProcessError"):
        run([setup_cell(UNSET)], outside, tmp_path / "empty", (tmp_path / "nowhere").as_uri())
    assert installed_in(outside) == []


def test_where_the_package_is_installed_the_cell_leaves_everything_alone(tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": "", "MPLCONFIGDIR": str(tmp_path)}
    command = [sys.executable, "-c", setup_cell(UNSET)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
