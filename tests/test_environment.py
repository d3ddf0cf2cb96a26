"""The descriptions of the environment agree: pyproject.toml, the lock file, environment.yml, the Makefile."""

from __future__ import annotations

import re
import subprocess
import tomllib
from importlib.metadata import distribution
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOCK = [
    Requirement(line)
    for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    if line.strip() and not line.startswith("#")
]


def declared() -> list[str]:
    extras = PROJECT["optional-dependencies"]
    return [*PROJECT["dependencies"], *extras["book"], *extras["test"]]


def test_environment_yml_lists_what_pyproject_lists() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    conda = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (pip,) = (entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert pip == [*declared(), "--editable ."]
    assert f"python {PROJECT['requires-python']}" in conda


def test_environment_yml_names_the_optional_packages() -> None:
    text = (ROOT / "environment.yml").read_text(encoding="utf-8")
    comments = " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
    extras = {
        name: packages for name, packages in PROJECT["optional-dependencies"].items() if name not in ("book", "test")
    }
    assert set(extras) == {"fid", "interop"}
    for name, packages in extras.items():
        assert f'"flowbook[{name}]"' in comments
        for package in packages:
            assert package in comments, package


def test_the_lock_pins_every_version_and_names_no_index() -> None:
    assert len(LOCK) > 100
    for requirement in LOCK:
        assert re.fullmatch(r"==[^*,]+", str(requirement.specifier)), f"{requirement} is not pinned"
        assert requirement.url is None
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert not re.search(r"://|--(?:extra-)?index-url|--find-links|--trusted-host", text)


def test_the_lock_satisfies_pyproject() -> None:
    pinned = {canonicalize_name(requirement.name): requirement for requirement in LOCK}
    for requirement in map(Requirement, declared()):
        locked = [r for r in LOCK if canonicalize_name(r.name) == canonicalize_name(requirement.name)]
        assert locked, f"{requirement.name} is not in the lock; run `make lock`"
        for pin in locked:
            version = str(pin.specifier).removeprefix("==")
            assert requirement.specifier.contains(version, prereleases=True), f"{pin} does not satisfy {requirement}"
    assert "setuptools" in pinned, "the project is built without isolation, with the setuptools of the lock"


@pytest.mark.parametrize("platform", ["linux", "darwin"])
@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_the_lock_has_one_version_of_each_package_on_every_platform(platform: str, python: str) -> None:
    machine = {"sys_platform": platform, "python_version": python, "python_full_version": f"{python}.0"}
    machine |= {"platform_system": platform.title(), "platform_machine": "x86_64" if platform == "linux" else "arm64"}
    names = [canonicalize_name(r.name) for r in LOCK if r.marker is None or r.marker.evaluate(machine)]
    assert sorted(names) == sorted(set(names))
    assert {"torch", "numpy", "pytest", "jupyter-book"} <= set(names)


def test_the_version_is_the_same_everywhere() -> None:
    import flowbook

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert flowbook.__version__ == PROJECT["version"] == citation["version"]
    assert f"## [{PROJECT['version']}]" in changelog
    assert distribution("flowbook").metadata["License-Expression"] == "MIT"


def test_make_refuses_another_python_and_names_the_ones_it_takes(tmp_path: Path) -> None:
    old = tmp_path / "python3.9"
    old.write_text('#!/bin/sh\ncase "$1" in --version) echo Python 3.9.1;; *) exit 1;; esac\n', encoding="utf-8")
    old.chmod(0o755)
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        (tmp_path / name).write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    run = subprocess.run(["make", "test", f"PYTHON={old}"], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode != 0
    assert "needs Python 3.11, 3.12 or 3.13" in run.stdout
    assert "Python 3.9.1" in run.stdout
    assert not (tmp_path / ".venv").exists()
