"""The package as a house: what imports what, where a name lives, and how large a function may be."""

from __future__ import annotations

import ast
import graphlib
import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import flowbook

PACKAGE = Path(flowbook.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

# From the ground up: a module imports from its own floor and from those below.
FLOORS: list[set[str]] = [
    {"_core"},
    {"velocity", "condition"},
    {"paths", "solvers"},
    {"analytic", "divergence"},
    {"data"},
    {"couplings", "guidance"},
    {"models"},
    {"metrics"},
    {"training"},
    {"diffusion"},
    {"adapters"},
    {"cnf"},
    {"flow_matching"},
    {"reflow"},
    {"inversion"},
    {"laws", "recipes"},
    {"book", "cli"},
    {"__main__"},
]
FLOOR = {name: height for height, names in enumerate(FLOORS) for name in names}
CHAPTERS = ("diffusion", "cnf", "flow_matching", "reflow", "inversion")


def part(path: Path) -> str:
    """The entry of the package's top level that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[str, str, bool]]:
    """(module, name, whether at the top of the file) of every import of something in flowbook."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        node for block in ast.walk(tree) if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for node in ast.walk(block)
    }  # fmt: skip
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "flowbook":
            for alias in node.names:
                yield node.module, alias.name, node in tree.body and node not in typing_only
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "flowbook":
                    yield alias.name, "", node in tree.body


def parts_imported(path: Path) -> set[str]:
    found = set()
    for module, name, _ in imports(path):
        pieces = [*module.split(".")[1:], name]
        if pieces[0] in FLOOR:
            found.add(pieces[0])
    return found - {part(path)}


def test_every_entry_of_the_package_has_its_floor() -> None:
    entries = {entry.name.removesuffix(".py") for entry in PACKAGE.iterdir() if entry.name != "__pycache__"}
    modules = entries - {"__init__", "assets", "py.typed"}
    assert modules == set(FLOOR)
    assert len(list(entries)) <= 30


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downwards(path: Path) -> None:
    if path == PACKAGE / "__init__.py":  # whose names load when they are used
        return
    above = {name for name in parts_imported(path) if FLOOR[name] > FLOOR[part(path)]}
    assert not above, f"{path.name} imports from above: {above}"


def test_no_two_parts_import_each_other() -> None:
    graph: dict[str, set[str]] = {name: set() for name in FLOOR}
    for path in FILES:
        if path != PACKAGE / "__init__.py":
            graph[part(path)] |= parts_imported(path)
    assert set(graphlib.TopologicalSorter(graph).static_order()) == set(FLOOR)  # raises for a circle


def test_training_knows_no_chapter() -> None:
    for path in (PACKAGE / "training").glob("*.py"):
        assert not parts_imported(path) & {*CHAPTERS, "recipes", "cli", "book"}
        text = path.read_text()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance":
                assert not re.search(r"loss|coupling", ast.unparse(node.args[0])), f"{path.name}:{node.lineno}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_file_imports_a_private_name_of_another(path: Path) -> None:
    private = [f"{module}.{name}" for module, name, _ in imports(path) if name.startswith("_") and name != "_core"]
    private += [module for module, _, _ in imports(path) if re.search(r"\._(?!core\b)", module)
                and not str(path.relative_to(PACKAGE)).startswith("book/checks")]  # fmt: skip
    assert not private


def test_a_name_has_one_home_and_few_addresses() -> None:
    """Public are the names of ``__all__``, or else what a module defines; a chapter may show those of another."""
    addresses: dict[str, set[str]] = {}
    homes: dict[str, set[str]] = {}
    for module in pkgutil.iter_modules(flowbook.__path__):
        loaded = importlib.import_module(f"flowbook.{module.name}")
        defined = [name for name, value in vars(loaded).items() if getattr(value, "__module__", "") == loaded.__name__]
        for name in getattr(loaded, "__all__", defined):
            if name.startswith("_") or not hasattr(value := getattr(loaded, name), "__module__"):
                continue
            addresses.setdefault(name, set()).add(module.name)
            homes.setdefault(name, set()).add(value.__module__)
    assert {name: found for name, found in homes.items() if len(found) > 1} == {}
    assert {name: found for name, found in addresses.items() if len(found) > 2} == {}


def test_what_a_package_re_exports_is_there_and_is_its_own() -> None:
    for module in pkgutil.iter_modules(flowbook.__path__):
        loaded = importlib.import_module(f"flowbook.{module.name}")
        for name in getattr(loaded, "__all__", ()):
            assert hasattr(loaded, name), f"{module.name}.{name}"
            # A submodule must not be hidden behind a function of its own name.
            assert not (PACKAGE / module.name / f"{name}.py").exists(), f"{module.name}.{name}"


# Size -----------------------------------------------------------------------------------------------------------------

# The signatures that the contract lists, and the sizes of two networks.
MANY_PARAMETERS = {
    "flow_matching_loss", "reflow_loss", "ddpm_loss", "ddim_sample", "variational_bound", "log_prob", "nll_loss", "fit",
    "MaximumLikelihood.__init__", "UNet.__init__", "DiT.__init__",
    "from_callable", "from_score",
}  # fmt: skip


def functions() -> Iterator[tuple[str, ast.FunctionDef]]:
    def walk(node: ast.AST, prefix: str) -> Iterator[tuple[str, ast.FunctionDef]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef):
                yield prefix + child.name, child
                yield from walk(child, prefix)
            elif isinstance(child, ast.ClassDef):
                yield from walk(child, f"{child.name}.")
            else:
                yield from walk(child, prefix)

    for path in FILES:
        yield from walk(ast.parse(path.read_text(encoding="utf-8")), "")


def test_no_function_is_longer_than_a_screen() -> None:
    long = {}
    for name, node in functions():
        docstring = ast.get_docstring(node, clean=False)
        lines = (node.end_lineno or 0) - node.lineno + 1 - (docstring.count("\n") + 1 if docstring else 0)
        if lines > 60:
            long[name] = lines
    assert not long


def test_few_parameters_are_positional_and_not_many_in_all() -> None:
    wrong = {}
    for name, node in functions():
        positional = [arg.arg for arg in (*node.args.posonlyargs, *node.args.args)]
        if positional[:1] in (["self"], ["cls"], ["ctx"]):
            positional = positional[1:]
        total = len(positional) + len(node.args.kwonlyargs)
        if len(positional) > 5 or (total > 8 and name not in MANY_PARAMETERS):
            wrong[name] = (len(positional), total)
    assert not wrong


def test_no_signature_needs_the_formatter_switched_off() -> None:
    for path in FILES:
        lines = path.read_text(encoding="utf-8").splitlines()
        for node in ast.walk(ast.parse("\n".join(lines))):
            if isinstance(node, ast.FunctionDef):
                signature = lines[node.lineno - 1 : node.body[0].lineno - 1]
                assert not any("fmt:" in line for line in signature), f"{path.name}:{node.lineno}"


def test_no_file_has_two_subjects_by_its_length() -> None:
    assert {path.name: n for path in FILES if (n := len(path.read_text().splitlines())) > 400} == {}
