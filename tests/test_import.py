"""Importing flowbook costs hardly more than importing torch."""

from __future__ import annotations

import importlib
import json
import pkgutil
import subprocess
import sys

import flowbook

LAZY = (
    "lpips",
    "matplotlib",
    "sklearn",
    "scipy",
    "torchdiffeq",
    "accelerate",
    "torchvision",
    "tensorboard",
    "torchmetrics",
)

TIMED = """
import json, sys, time
import torch
start = time.perf_counter()
import {module}
seconds = time.perf_counter() - start
print(json.dumps({{"seconds": seconds, "loaded": sorted({{name.partition(".")[0] for name in sys.modules}})}}))
"""

MODULES = ["flowbook", *(f"flowbook.{module.name}" for module in pkgutil.iter_modules(flowbook.__path__))]
MODULES.remove("flowbook.__main__")  # which is the command


def imported(module: str) -> tuple[float, set[str]]:
    """The seconds that an import takes after torch's, and the top-level names that are loaded then."""
    done = subprocess.run(
        [sys.executable, "-c", TIMED.format(module=module)], capture_output=True, text=True, check=True
    )
    result = json.loads(done.stdout)
    return result["seconds"], set(result["loaded"])


def test_import_flowbook_takes_at_most_a_fifth_of_a_second_over_torch() -> None:
    assert any(imported("flowbook")[0] < 0.2 for _ in range(4))  # more than once only on a busy machine


def test_heavy_libraries_load_when_they_are_first_used() -> None:
    _, after = imported(", ".join(MODULES))
    assert "flowbook" in after and "torch" in after
    assert after & set(LAZY) == set()


def test_the_top_level_re_exports_no_name_that_is_a_module_s() -> None:
    for module in pkgutil.iter_modules(flowbook.__path__):
        imported_module = importlib.import_module(f"flowbook.{module.name}")
        assert getattr(flowbook, module.name) is imported_module


def test_the_names_at_the_top_are_those_of_their_modules_and_load_when_they_are_used() -> None:
    script = """
import sys, flowbook
assert not any(name.startswith("flowbook.") for name in sys.modules)
for name in flowbook.__all__:
    value = getattr(flowbook, name)
    home = next(module for module, names in flowbook._HOMES.items() if name in names)
    assert value is getattr(sys.modules["flowbook." + home], name), name
assert set(flowbook.__all__) == {name for names in flowbook._HOMES.values() for name in names}
assert set(flowbook.__all__) <= set(dir(flowbook))
try:
    flowbook.solv
except AttributeError as error:
    assert "no attribute 'solv'" in str(error)
else:
    raise AssertionError
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
