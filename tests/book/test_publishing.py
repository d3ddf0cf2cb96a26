"""What leaves the repository: the wheel, the workflows that publish it, and the page for those who change something.

GitHub is not asked. The workflows are read as files, and those of their steps that decide something are run here.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from flowbook import models

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
from commit_subject import MAX_LENGTH, complaint  # noqa: E402

VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
WORKFLOWS = {path.name: path for path in sorted((ROOT / ".github" / "workflows").glob("*.yml"))}
PUBLISHING = ("home.yml", "pages.yml", "release.yml")
ADDRESSED = tuple(map(Path, ("_config.yml", "README.md", "CITATION.cff", "pyproject.toml")))
every_workflow = pytest.mark.parametrize("name", WORKFLOWS)


def known_files() -> list[Path]:
    """The files that git knows or would add, relative to the root."""
    if not (ROOT / ".git").exists():  # a copy without its history
        return [path.relative_to(ROOT) for path in ROOT.glob("flowbook/**/*.*") if path.parent.name != "__pycache__"]
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [Path(name) for name in listed.split("\0") if name and (ROOT / name).is_file()]


# The wheel ------------------------------------------------------------------------------------------------------------

BUILD = """
import sys
from setuptools import build_meta
out = sys.argv[1]  # setuptools writes arguments of its own there
build_meta.build_sdist(out)
build_meta.build_wheel(out)
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that setuptools builds into, without the network.

    It builds from a clean copy of all files, beside which lie some that a used folder has.
    """
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("dist")
    for file in {*known_files(), *map(Path, ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"))}:
        (copy / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / file, copy / file)
    for stray in ("flowbook/notes.txt", "flowbook/__pycache__/solvers.cpython-311.pyc", "runs/mine/log.jsonl"):
        (copy / stray).parent.mkdir(parents=True, exist_ok=True)
        (copy / stray).write_text("not of the package", encoding="utf-8")
    done = subprocess.run([sys.executable, "-c", BUILD, str(out)], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    return built / f"flowbook-{VERSION}-py3-none-any.whl"


@pytest.fixture(scope="module")
def sdist(built: Path) -> set[str]:
    """The names of the files in the source distribution, below its one folder."""
    with tarfile.open(built / f"flowbook-{VERSION}.tar.gz") as archive:
        return {member.name.partition("/")[2] for member in archive if member.isfile()}


def packaged() -> set[str]:
    """The files of the package that git knows."""
    return {file.as_posix() for file in known_files() if file.parts[0] == "flowbook"}


def names_in(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


def test_the_wheel_is_the_package_file_by_file(wheel: Path) -> None:
    """Sources, recipes, assets and py.typed: whatever git knows below flowbook/, and nothing that it does not."""
    names = {name for name in names_in(wheel) if name.startswith("flowbook/")}
    assert names == packaged()
    for pattern in ("*.py", "py.typed", "recipes/*.yaml", "assets/*.safetensors"):
        expected = {path.relative_to(ROOT).as_posix() for path in (ROOT / "flowbook").glob(pattern)}
        assert expected and expected <= names, pattern


def test_beside_the_package_there_are_only_its_metadata_and_its_license(wheel: Path) -> None:
    about = f"flowbook-{VERSION}.dist-info/"
    beside = {name for name in names_in(wheel) if not name.startswith("flowbook/")}
    assert {name for name in beside if not name.startswith(about)} == set()
    assert {about + name for name in ("METADATA", "entry_points.txt", "licenses/LICENSE")} <= beside


def test_the_wheel_is_below_twelve_megabytes(wheel: Path) -> None:
    assert wheel.stat().st_size < 12e6


def test_the_source_distribution_has_what_the_wheel_is_built_from_and_no_tests(sdist: set[str]) -> None:
    """The tests need the notebooks, which are not in it."""
    beside = {name for name in sdist if not name.startswith(("flowbook/", "flowbook.egg-info/"))}
    assert {name for name in sdist if name.startswith("flowbook/")} == packaged()
    assert beside == {"LICENSE", "MANIFEST.in", "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg"}


# The workflows --------------------------------------------------------------------------------------------------------


def workflow(name: str) -> dict[str, Any]:
    """A workflow as it is written: every scalar is a string, also `on`, which YAML takes for a truth value."""
    loaded: dict[str, Any] = yaml.load(WORKFLOWS[name].read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    return loaded


def steps(name: str) -> Iterator[dict[str, Any]]:
    for job in workflow(name)["jobs"].values():
        yield from job["steps"]


def step(name: str, title: str) -> dict[str, Any]:
    (found,) = (step for step in steps(name) if step.get("name") == title)
    return found


def may_write(name: str) -> set[tuple[str, str]]:
    """(job, what it may do beyond reading) of all jobs of a workflow."""
    jobs = workflow(name)["jobs"].items()
    grants = [(title, *grant) for title, job in jobs for grant in job.get("permissions", {}).items()]
    return {(title, permission) for title, permission, access in grants if access != "read"}


def targets_called(text: str) -> set[str]:
    """The targets of every make command in lines of a shell; what stands in quotes is no command."""
    calls = re.findall(r"(?:^|[\s(&|;])make((?: +[^\s|;&)]+)+)", re.sub(r'"[^"]*"', "", text), re.M)
    return {word for call in calls for word in call.split() if re.fullmatch(r"[a-z][a-z-]*", word)}


def test_the_workflows_are_those_that_the_readme_and_the_tests_know() -> None:
    assert set(WORKFLOWS) == {"tests.yml", "newest.yml", *PUBLISHING}


@every_workflow
def test_a_job_has_an_end_and_says_what_it_runs_on(name: str) -> None:
    for title, job in workflow(name)["jobs"].items():
        assert int(job["timeout-minutes"]) <= 60 and job["runs-on"], title
        assert job["steps"] and all(("run" in step) != ("uses" in step) for step in job["steps"]), title


@every_workflow
def test_what_a_workflow_calls_exists(name: str) -> None:
    for command in (step["run"] for step in steps(name) if "run" in step):
        assert targets_called(command) <= TARGETS, command
        for script in re.findall(r"(?<![\w./])(?:scripts|tests|benchmarks|\.ci)/[\w./-]+", command):
            assert (ROOT / script).is_file(), script
            assert script.endswith(".py") or os.access(ROOT / script, os.X_OK), f"{script} cannot be executed"


@every_workflow
def test_a_command_is_sound_and_no_expression_is_pasted_into_it(name: str) -> None:
    """A branch or a repository may have any name: the shell reads it as a variable, never as code."""
    for written in (step for step in steps(name) if "run" in step):
        assert "${{" not in written["run"]
        if written.get("shell") == "python":
            compile(written["run"], name, "exec")
        else:
            done = subprocess.run(["bash", "-n"], input=written["run"], capture_output=True, text=True)
            assert (done.returncode, done.stderr) == (0, ""), written["run"]


@every_workflow
def test_a_workflow_may_read_and_one_job_of_it_may_do_what_it_is_for(name: str) -> None:
    assert workflow(name)["permissions"] == {"contents": "read"}
    allowed = {
        "home.yml": {("home", "contents")},
        "pages.yml": {("deploy", "pages"), ("deploy", "id-token")},
        "release.yml": {("publish", "id-token")},
    }
    assert may_write(name) == allowed.get(name, set())


@every_workflow
def test_only_the_job_that_pushes_keeps_the_right_to_push(name: str) -> None:
    for checkout in (step for step in steps(name) if step.get("uses", "").startswith("actions/checkout@")):
        assert (checkout.get("with", {}).get("persist-credentials") == "false") == (name != "home.yml")


@every_workflow
def test_what_may_write_is_out_of_the_reach_of_pull_requests(name: str) -> None:
    events = set(workflow(name)["on"])
    assert events <= {"push", "pull_request", "schedule", "workflow_dispatch"}
    assert "workflow_dispatch" in events, "a workflow can be started by hand"
    if may_write(name):
        assert events == {"push", "workflow_dispatch"}


def test_what_publishes_the_book_runs_on_the_branch_that_its_links_name() -> None:
    branch = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["repository"]["branch"]
    for name in ("home.yml", "pages.yml"):
        assert workflow(name)["on"]["push"] == {"branches": [branch]}


def test_actions_are_pinned_to_a_major_version_which_is_the_same_everywhere() -> None:
    versions: dict[str, set[str]] = {}
    for used in (step["uses"] for name in WORKFLOWS for step in steps(name) if "uses" in step):
        action, _, version = used.partition("@")
        assert re.fullmatch(r"(release/)?v\d+", version), used
        assert action.split("/")[0] in {"actions", "pypa"}, f"{action} is neither GitHub's nor Python's own"
        versions.setdefault(action, set()).add(version)
    assert {action: found for action, found in versions.items() if len(found) > 1} == {}


@every_workflow
def test_no_secret_and_no_address_is_written_down(name: str) -> None:
    text = WORKFLOWS[name].read_text(encoding="utf-8").replace("id-token", "").replace("users.noreply.github.com", "")
    assert not re.search(r"secret|token|password|credential(?!s: false)|index-url|[\w-]+\.(?:org|com|io)\b|://", text)


def test_only_a_tag_publishes_and_only_what_was_tried() -> None:
    jobs = workflow("release.yml")["jobs"]
    assert workflow("release.yml")["on"]["push"] == {"tags": ["v*"]}
    assert jobs["publish"]["if"] == "github.event_name == 'push'" and jobs["publish"]["environment"] == "pypi"
    assert jobs["publish"]["needs"] == ["build", "install"] and jobs["install"]["needs"] == "build"
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert [title for title, job in jobs.items() if "permissions" in job] == ["publish"]


# Their steps, run here ------------------------------------------------------------------------------------------------


def run_step(written: dict[str, Any], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A step as GitHub runs it: bash, which stops at the first failure, with the variables that GitHub sets."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    alone = {"PATH": path, "HOME": str(folder.parent), "GIT_CONFIG_NOSYSTEM": "1", **environment}
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", written["run"]]
    return subprocess.run(command, cwd=folder, env=alone, capture_output=True, text=True)


def git(folder: Path, *arguments: str) -> str:
    """What git prints; inside a hook, the variables that name another repository are left out."""
    command = ["git", "-c", "user.name=test", "-c", "user.email=test@example.invalid", *arguments]
    alone = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return subprocess.run(command, cwd=folder, env=alone, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A clone of a repository with the files that hold the address, where no address is set yet."""
    git(tmp_path, "init", "--quiet", "--bare", "--initial-branch=main", "origin")
    git(tmp_path, "clone", "--quiet", "origin", "checkout")
    folder = tmp_path / "checkout"
    notebook = next((ROOT / "book").glob("*.ipynb")).relative_to(ROOT)
    scripts = (Path("scripts/home.py"), Path("scripts/setup_cell.py"))
    for file in (*ADDRESSED, notebook, *scripts):
        (folder / file).parent.mkdir(exist_ok=True)
        shutil.copyfile(ROOT / file, folder / file)
    (folder / ".gitignore").write_text("__pycache__/\n", encoding="utf-8")
    here = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["repository"]["url"].split(".com/")[1]
    for file in (*ADDRESSED, notebook):
        text = (folder / file).read_text(encoding="utf-8")
        (folder / file).write_text(text.replace(here, "_unset_/flowbook"), encoding="utf-8")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "As it was")
    git(folder, "push", "--quiet", "origin", "HEAD:main")
    git(folder, "branch", "--quiet", "--set-upstream-to=origin/main")
    return folder


def home(folder: Path, repository: str, fork: bool = False) -> int:
    """Run the steps of home.yml after a push; the number of commits that the remote has then."""
    for title in ("Write the address", "Commit what has changed"):
        keep = "true" if fork else "false"
        done = run_step(step("home.yml", title), folder, GITHUB_REPOSITORY=repository, KEEP=keep)
        assert done.returncode == 0, done.stderr
    assert git(folder, "status", "--porcelain") == ""
    return int(git(folder.parent / "origin", "rev-list", "--count", "main"))


def address(folder: Path) -> str:
    """The address that the last commit of the remote has in _config.yml."""
    config = git(folder.parent / "origin", "show", "main:_config.yml")
    return str(yaml.safe_load(config)["repository"]["url"])


def test_home_commits_the_address_once_and_follows_the_repository_to_another(checkout: Path) -> None:
    assert home(checkout, "some-body/flow.book") == 2
    assert address(checkout) == "https://github.com/some-body/flow.book"
    assert home(checkout, "some-body/flow.book") == 2, "nothing has changed, and something was committed"
    assert home(checkout, "some-body/renamed") == 3
    assert address(checkout) == "https://github.com/some-body/renamed"
    changed = git(checkout, "diff", "--name-only", "HEAD~2").splitlines()
    assert len(changed) == len(ADDRESSED) + 1 and set(map(str, ADDRESSED)) < set(changed)
    assert complaint(git(checkout, "log", "-1", "--format=%B")) == ""


def test_a_push_to_a_fork_leaves_an_address_that_is_set_and_sets_one_that_is_not(checkout: Path) -> None:
    assert home(checkout, "first/home", fork=True) == 2
    assert home(checkout, "a-guest/home", fork=True) == 2
    assert address(checkout) == "https://github.com/first/home"


def test_home_says_what_to_do_where_the_branch_takes_no_commit(checkout: Path) -> None:
    refuse = checkout.parent / "origin" / "hooks" / "pre-receive"
    refuse.parent.mkdir(exist_ok=True)
    refuse.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    refuse.chmod(0o755)
    variables = {"GITHUB_REPOSITORY": "some-body/flowbook", "KEEP": "false"}
    assert run_step(step("home.yml", "Write the address"), checkout, **variables).returncode == 0
    done = run_step(step("home.yml", "Commit what has changed"), checkout, **variables)
    assert done.returncode != 0 and "::error::" in done.stdout and "make home REPO=some-body/flowbook" in done.stdout


@pytest.mark.parametrize(("tag", "agrees"), [(f"v{VERSION}", True), (VERSION, False), (f"v{VERSION}.1", False)])
def test_a_release_has_the_version_that_its_tag_says(tag: str, agrees: bool) -> None:
    done = run_step(step("release.yml", "Compare the tag with the version"), ROOT, GITHUB_REF_NAME=tag)
    assert (done.returncode == 0) == agrees
    assert ("::error::" in done.stdout) != agrees


@pytest.mark.parametrize("owner", ["_unset_", "some-body"])
def test_a_release_has_an_address(owner: str, tmp_path: Path) -> None:
    text = f'[project.urls]\nRepository = "https://github.com/{owner}/flowbook"\n'
    (tmp_path / "pyproject.toml").write_text(text, encoding="utf-8")
    done = run_step(step("release.yml", "See that the address is set"), tmp_path)
    assert (done.returncode == 0) == (owner != "_unset_")
    assert ("::error::" in done.stdout) == (owner == "_unset_")


def test_what_a_release_is_tried_with_runs_with_the_package_as_it_is() -> None:
    (script,) = (step["run"] for step in steps("release.yml") if step.get("shell") == "python")
    done: dict[str, Any] = {}
    exec(compile(script, "release.yml", "exec"), done)
    assert set(done["models"]) == set(models.PRETRAINED) and done["digits"].shape == (3, 1, 8, 8)


def test_the_install_of_home_finds_its_one_pin() -> None:
    """What grep takes from the lock is one line, and the script's other imports are Python's own."""
    pattern = re.search(r"grep '(.*?)'", step("home.yml", "Install what the script imports")["run"])
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert pattern is not None and len(re.findall(pattern.group(1), lock, re.M)) == 1
    imported = "\n".join((ROOT / "scripts" / name).read_text(encoding="utf-8") for name in ("home.py", "setup_cell.py"))
    outside_the_template = re.sub(r'"""\\\n.*?"""', "", imported, flags=re.S)
    names = set(re.findall(r"^(?:import|from) (\w+)", outside_the_template, re.M))
    assert names - set(sys.stdlib_module_names) == {"yaml", "setup_cell"}


# The page for those who change something ------------------------------------------------------------------------------

DOCUMENTS = ("CONTRIBUTING.md", "README.md")
PATH = re.compile(r"[\w.*-]+(?:/[\w.*-]+)*/?")
FILE = re.compile(r".*\.(?:py|md|ya?ml|toml|ipynb|bib|txt|lock|cff|in)")


def code(document: str) -> list[str]:
    """What stands in backticks and in fenced lines."""
    text = (ROOT / document).read_text(encoding="utf-8")
    fenced = [line for block in re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S) for line in block.splitlines()]
    return fenced + re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))


def files_named(document: str) -> set[str]:
    """What looks like a file or a folder of this repository; NN in a name stands for digits that are not chosen yet."""
    words = {word for text in code(document) for word in text.split() if PATH.fullmatch(word)}
    return {word for word in words if ("/" in word or FILE.fullmatch(word)) and "NN" not in word}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_document_names_targets_that_make_has(document: str) -> None:
    called = targets_called("\n".join(re.sub(r"\s#.*", "", text) for text in code(document)))
    assert called and called <= TARGETS, called - TARGETS


def test_the_files_that_the_page_names_are_there() -> None:
    named = files_named("CONTRIBUTING.md")
    assert len(named) > 20
    assert {name for name in named if not list(ROOT.glob(name))} == set()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_between_documents_lead_somewhere(document: str) -> None:
    links = re.findall(r"\]\(([^)#:\s]+)[^):]*\)", (ROOT / document).read_text(encoding="utf-8"))
    assert {link for link in links if not (ROOT / link).exists()} == set()


def test_the_readme_points_to_the_page_and_names_every_workflow_that_publishes() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "(CONTRIBUTING.md)" in readme
    for name in PUBLISHING:
        assert f"| `{name.removesuffix('.yml')}` |" in readme


# The hooks ------------------------------------------------------------------------------------------------------------


def test_every_hook_is_the_projects_own_and_there() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert [entry["repo"] for entry in config["repos"]] == ["local"], "nothing is fetched"
    for hook in config["repos"][0]["hooks"]:
        program, *arguments = shlex.split(hook["entry"])
        assert hook["language"] == "system"
        assert program in {"git", ".venv/bin/python", ".venv/bin/ruff"}
        assert all((ROOT / argument).is_file() for argument in arguments if argument.endswith(".py"))
        assert not hook.get("files") or any(re.search(hook["files"], file.as_posix()) for file in known_files())


@pytest.mark.parametrize(
    ("message", "passes"),
    [
        ("A" * MAX_LENGTH, True),
        ("A" * (MAX_LENGTH + 1), False),
        ("# a comment\n\nAdd a trap\n\n" + "The reason, at length. " * 10, True),
        ("\n" + "A" * (MAX_LENGTH + 1) + "\n# a comment", False),
        ("Merge branch 'main' of a place with a long name into " + "a" * MAX_LENGTH, True),
        ("fixup! " + "A" * MAX_LENGTH, True),
        ("", True),  # git itself refuses it
    ],
)
def test_a_subject_has_sixty_characters_at_most(message: str, passes: bool, tmp_path: Path) -> None:
    assert (complaint(message) == "") == passes
    file = tmp_path / "COMMIT_EDITMSG"
    file.write_text(message, encoding="utf-8")
    script = ROOT / "scripts" / "commit_subject.py"
    done = subprocess.run([sys.executable, str(script), str(file)], capture_output=True, text=True)
    assert (done.returncode, done.stderr == "") == (0 if passes else 1, passes)
