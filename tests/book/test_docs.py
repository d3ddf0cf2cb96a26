"""What the pages beside the chapters say: the README's example, the reference, the notation, the public address."""

from __future__ import annotations

import ast
import contextlib
import itertools
import math
import pkgutil
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import flowbook
from flowbook import metrics, models, recipes
from flowbook.guidance import guided
from flowbook.paths import CosinePath, LinearPath, VPPath

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
from setup_cell import read_home  # noqa: E402

MODULES = sorted(module.name for module in pkgutil.iter_modules(flowbook.__path__) if not module.name.startswith("_"))


def code_blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.S)


def test_the_readmes_lines_train_and_sample(tmp_path: Path) -> None:
    (block,) = code_blocks("README.md")
    assert len([line for line in block.splitlines() if line.strip()]) <= 10
    torch.manual_seed(0)
    names: dict[str, torch.Tensor] = {}
    with contextlib.chdir(tmp_path):
        exec(compile(block, "README.md", "exec"), names)
    data, samples = names["x1"][:1000], names["samples"]
    assert samples.shape == (1000, 2)
    assert metrics.wasserstein2(samples, data) < 0.1 * metrics.wasserstein2(torch.randn(1000, 2), data)


def test_the_lines_of_the_index_page_run() -> None:
    (block,) = code_blocks("book/index.md")
    names: dict[str, object] = {}
    exec(compile(block.replace("steps=2000", "steps=2"), "index.md", "exec"), names)
    assert callable(names["result"].velocity)  # type: ignore[attr-defined]


def test_every_module_has_its_page_in_the_reference() -> None:
    toc = (ROOT / "book" / "_toc.yml").read_text(encoding="utf-8")
    table = (ROOT / "book" / "api" / "index.md").read_text(encoding="utf-8")
    for name in MODULES:
        page = ROOT / "book" / "api" / f"{name}.md"
        assert page.exists(), f"book/api/{name}.md is missing"
        assert f".. automodule:: flowbook.{name}\n" in page.read_text(encoding="utf-8")
        assert f"file: api/{name}\n" in toc
        assert f"[`flowbook.{name}`]({name}.md)" in table
    assert len(list((ROOT / "book" / "api").glob("*.md"))) == len(MODULES) + 1


def test_every_public_function_of_the_notation_page_exists() -> None:
    text = (ROOT / "book" / "notation.md").read_text(encoding="utf-8")
    attributes = re.findall(r"`path\.(\w+)", text)
    assert {"alpha", "sigma", "alpha_dot", "sigma_dot", "velocity", "convert"} <= set(attributes)
    for attribute in attributes:
        assert hasattr(LinearPath(), attribute), f"path.{attribute} is on the notation page and not in the package"


def test_papers_named_in_the_package_are_in_the_bibliography() -> None:
    bibliography = (ROOT / "book" / "references.bib").read_text(encoding="utf-8")
    entries = [(e.lower(), y) for e, y in re.findall(r"author = \{(.*?)\},\n.*?year = \{(\d+)\}", bibliography, re.S)]
    missing = []
    for file in sorted((ROOT / "flowbook").rglob("*.py")):
        text = re.sub(r"\s+", " ", file.read_text(encoding="utf-8"))
        for author, year in re.findall(r"([A-Z][\w-]+)(?: et al\.| and [A-Z][\w-]+)[,]? \(?((?:19|20)\d\d)", text):
            if not any(author.lower() in authors and year == y for authors, y in entries):
                missing.append(f"{file.name}: {author} {year}")
    assert missing == []


# The convention card of the notation page: theirs on the left, ours on the right -------------------------------------

TIMES = [0.0, 0.2, 0.5, 0.9, 1.0]


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x0, x1 = (torch.randn(5, 3, dtype=torch.float64, generator=generator) for _ in range(2))
    return x0, x1


def assert_near(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("t", TIMES)
def test_flow_matching_rectified_flow_and_stochastic_interpolants(
    pair: tuple[torch.Tensor, torch.Tensor], t: float
) -> None:
    x0, x1 = pair
    assert_near(LinearPath(0.1).interpolate(x0, x1, t), (1 - (1 - 0.1) * t) * x0 + t * x1)
    assert_near(LinearPath().interpolate(x0, x1, t), t * x1 + (1 - t) * x0)
    assert_near(LinearPath().velocity(x0, x1, t), x1 - x0)
    assert_near(CosinePath().interpolate(x0, x1, t), math.cos(math.pi / 2 * t) * x0 + math.sin(math.pi / 2 * t) * x1)


@pytest.mark.parametrize("t", TIMES)
def test_score_sde_runs_from_data_to_noise_with_the_integral_of_beta(t: float) -> None:
    s = torch.linspace(0, 1 - t, 20_001, dtype=torch.float64)
    integral = torch.trapezoid(0.1 + s * (20.0 - 0.1), s)
    alpha = torch.exp(-0.5 * integral)
    now = torch.tensor(t, dtype=torch.float64)
    torch.testing.assert_close(VPPath().alpha(now), alpha, rtol=1e-9, atol=0)
    torch.testing.assert_close(VPPath().sigma(now) ** 2, 1 - alpha**2, rtol=1e-9, atol=1e-12)


def test_ddpm_is_the_variance_preserving_path_in_small_steps() -> None:
    steps = 1000
    betas = torch.linspace(0.1 / steps, 20.0 / steps, steps, dtype=torch.float64)
    alpha_bar = torch.cumprod(1 - betas, 0)
    k = torch.tensor([1, 250, 500])
    t = 1 - k.double() / steps
    torch.testing.assert_close(VPPath().alpha(t), alpha_bar[k - 1].sqrt(), rtol=0.02, atol=0)


@pytest.mark.parametrize("t", [0.2, 0.5, 0.9])
def test_edm_and_variance_exploding_states_are_ours_over_alpha(
    pair: tuple[torch.Tensor, torch.Tensor], t: float
) -> None:
    x0, x1 = pair
    now = torch.tensor(t, dtype=torch.float64)
    for path in (LinearPath(), CosinePath(), VPPath()):
        level = path.sigma(now) / path.alpha(now)
        assert_near(path.interpolate(x0, x1, now) / path.alpha(now), x1 + level * x0)
    assert_near(now, 1 / (1 + LinearPath().sigma(now) / LinearPath().alpha(now)))


@pytest.mark.parametrize("t", TIMES)
def test_v_prediction_and_flow_transformers(pair: tuple[torch.Tensor, torch.Tensor], t: float) -> None:
    x0, x1 = pair
    path, now = CosinePath(), torch.tensor(t, dtype=torch.float64)
    assert_near(path.velocity(x0, x1, now), -math.pi / 2 * (path.alpha(now) * x0 - path.sigma(now) * x1))
    s = 1 - now
    assert_near(LinearPath().interpolate(x0, x1, now), (1 - s) * x1 + s * x0)
    assert_near(LinearPath().velocity(x0, x1, now), -(x0 - x1))


def test_guidance_scale_is_one_plus_their_w() -> None:
    def model(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.where(y[:, None] == 9, 2.0, 3.0) * x

    x, w = torch.ones(1, 2), 1.5
    guide = guided(model, 1 + w, null=9)
    assert_near(guide(x, torch.tensor(0.5), torch.tensor([1])), (1 + w) * 3 * x - w * 2 * x)


# The public address ---------------------------------------------------------------------------------------------------


ADDRESSED = ("_config.yml", "README.md", "CITATION.cff", "pyproject.toml")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The files that hold the address, and the script that sets it."""
    for name in ADDRESSED:
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    (tmp_path / "book").mkdir()
    for notebook in (ROOT / "book").glob("*.ipynb"):
        shutil.copy(notebook, tmp_path / "book")
    return tmp_path


def make_home(copy: Path, repository: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "scripts/home.py", repository], cwd=copy, capture_output=True, text=True)


def test_home_writes_the_address_everywhere_and_can_be_changed_again(copy: Path) -> None:
    files = [path for path in copy.rglob("*") if path.suffix in (".yml", ".md", ".cff", ".toml", ".ipynb")]
    before = {path: path.read_text(encoding="utf-8") for path in files}
    old = read_home().removeprefix("https://github.com/")
    for first, second in ((old, "some-body/flow.book"), ("some-body/flow.book", "another/flowbook")):
        done = make_home(copy, second)
        assert done.returncode == 0, done.stderr
        for path in files:
            text = path.read_text(encoding="utf-8")
            assert first not in text, path
            assert text.count(second) == before[path].count(old), path
    assert all(before[copy / name].count(old) for name in ADDRESSED)
    config = yaml.safe_load((copy / "_config.yml").read_text(encoding="utf-8"))
    assert config["repository"]["url"] == "https://github.com/another/flowbook"


@pytest.mark.parametrize(
    "repository", ["", "name", "owner/", "https://github.com/a/b", "_unset_/flowbook", "a/b/c", "a b/c"]
)
def test_home_refuses_what_is_no_repository(copy: Path, repository: str) -> None:
    before = (copy / "_config.yml").read_text(encoding="utf-8")
    done = make_home(copy, repository)
    assert done.returncode != 0
    assert "expected owner/name" in done.stderr
    assert (copy / "_config.yml").read_text(encoding="utf-8") == before


def test_the_page_on_clusters_shows_what_a_run_says_at_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    recipe = recipes.read("cifar10_unet")
    page = " ".join((ROOT / "book" / "cluster.md").read_text().split())
    network, memory = recipes.announce(recipe).splitlines()
    assert network in page and memory.split("; ")[0] in page
    with torch.device("meta"):
        cost = models.cost(recipes.build_model(recipe), torch.zeros(1, 3, 32, 32, device="meta"))
    assert f"for the backward pass, {cost.activations / 1e6:.0f} MB" in page
    assert f"{20 * cost.parameters / 1e9:.2f} GB on each device" in page


def test_no_attribute_s_description_is_read_as_a_type() -> None:
    """Sphinx takes what stands before a colon in the first line of an attribute's docstring for its type."""
    found = []
    for path in sorted((ROOT / "flowbook").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            body = node.body if isinstance(node, ast.ClassDef | ast.Module) else []
            for attribute, text in itertools.pairwise(body):
                if (
                    isinstance(attribute, ast.Assign | ast.AnnAssign) and isinstance(text, ast.Expr)
                    and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
                ):  # fmt: skip
                    first = re.sub(r"(:\w+:)?`+[^`]*`+", "", text.value.value.splitlines()[0])
                    found += [f"{path.name}:{text.lineno}"] if ": " in first or first.endswith(":") else []
    assert not found
