"""The code keeps its shape, and the files that describe the project and its environment agree."""

import ast
import re
import subprocess
import sys
import tomllib

import pandas as pd
import pytest
import yaml
from packaging.version import Version

from helpers.config import PROFILES
from helpers.experiments import EXPERIMENTS, Experiment, experiment_settings
from helpers.notebook import NEEDED
from helpers.runs import ROOT

READING_ORDER = (
    *("notebook", "config", "runs", "data", "models", "batches", "layers", "losses", "lora", "training", "evaluation"),
    *("saved", "experiments", "results", "improvements", "plots", "checks", "export", "demo"),
)
# The first cell imports these inside functions, once it has installed what they need.
IMPORTED_LATER = {"notebook": {"runs", "batches"}}
HELPERS = {path.stem: ast.parse(path.read_bytes()) for path in (ROOT / "helpers").glob("[!_]*.py")}
TOOLS = {path.stem: ast.parse(path.read_bytes()) for path in (ROOT / "tools").glob("[!_]*.py")}


def project_imports(tree: ast.AST) -> set[str]:
    """The modules of the project that are imported in it: 'helpers.runs', 'tools.publish'."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and "." in (node.module or ""):
            found.add(node.module)
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.startswith(("helpers.", "tools."))}


def functions() -> dict[str, ast.FunctionDef]:
    """Every function of helpers/ and tools/ by 'module.name'."""
    modules = HELPERS | TOOLS
    found = {
        name: [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)] for name, tree in modules.items()
    }
    return {f"{name}.{function.name}": function for name in found for function in found[name]}


def test_every_module_has_its_place_in_the_reading_order():
    assert sorted(READING_ORDER) == sorted(HELPERS)


def test_a_module_imports_only_from_those_above_it():
    for name, tree in HELPERS.items():
        above = {"helpers.ROOT"} | {f"helpers.{module}" for module in READING_ORDER[: READING_ORDER.index(name)]}
        at_once = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
        assert project_imports(at_once) <= above, name
        later = {f"helpers.{module}" for module in IMPORTED_LATER.get(name, ())}
        assert project_imports(tree) <= above | later, name


def test_every_module_says_its_purpose_in_one_line():
    for name, tree in (HELPERS | TOOLS).items():
        first = (ast.get_docstring(tree) or "").splitlines()[0]
        assert len(first) > 30 and first.endswith((".", ":", "`")), name


def test_a_function_fits_a_screen():
    lengths = {name: function.end_lineno - function.lineno + 1 for name, function in functions().items()}
    assert {name: length for name, length in lengths.items() if length > 60} == {}


def test_a_function_takes_at_most_seven_parameters():
    counts = {
        name: len(each.args.posonlyargs + each.args.args + each.args.kwonlyargs) for name, each in functions().items()
    }
    assert {name: count for name, count in counts.items() if count > 7} == {}


def lines(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    return [line.split("#")[0].strip() for line in text.splitlines() if line.split("#")[0].strip()]


def names(requirements):
    return {re.split(r"[<>=!~]", line)[0].strip().lower().replace("_", "-") for line in requirements}


def test_every_requirement_is_pinned_to_an_exact_version():
    assert names(lines("requirements.txt")) <= names(lines("constraints.txt"))
    pins = lines("constraints.txt") + lines("constraints-lowest.txt")
    assert [line for line in pins if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []


def test_the_lowest_environment_has_the_lower_bound_of_every_requirement():
    pinned = dict(line.lower().split("==") for line in lines("constraints-lowest.txt"))
    for requirement in lines("requirements.txt"):
        name, bound = re.match(r"([\w.-]+)>=([\d.]+)", requirement).groups()
        if name != "torch":  # both environments share it
            assert Version(pinned[name]).release[: len(Version(bound).release)] == Version(bound).release, requirement


def test_both_environments_have_the_same_torch():
    [pinned] = [line for line in lines("constraints.txt") if line.startswith("torch==")]
    assert pinned in lines("constraints-lowest.txt")


def test_every_requirement_gives_its_reason():
    stated = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in stated if "#" not in line] == []


def test_conda_has_a_python_that_the_project_supports_and_the_same_requirements():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["requires-python"] == ">=3.11,<3.14"
    *packages, pip = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    assert {"python=3.11", "python=3.12", "python=3.13"} & set(packages)
    assert pip == {"pip": ["-r requirements.txt", "-c constraints.txt"]}


def test_what_a_notebook_may_install_is_a_requirement_and_never_torch_or_numpy():
    assert set(NEEDED.values()) <= names(lines("requirements.txt"))
    assert not {"torch", "numpy"} & set(NEEDED.values())


def test_what_runs_before_a_commit_needs_no_network():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert [repo["repo"] for repo in hooks] == ["local"]
    assert all(hook["language"] == "system" and hook["entry"].startswith(".venv/bin/") for hook in hooks[0]["hooks"])


@pytest.mark.skipif(sys.platform == "win32", reason="needs make")
@pytest.mark.parametrize("version", ["3.10.13", "3.14.0"])
def test_an_unsupported_python_gets_one_clear_line(tmp_path, version):
    python = tmp_path / "python-other"
    pretend = f"import sys; sys.version_info = ({version.replace('.', ',')}, 0, 0); exec(sys.argv[1])"
    python.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && echo "Python {version}" && exit\nexec python3 -c "{pretend}" "$2"\n'
    )
    python.chmod(0o755)
    command = ["make", "run", f"PYTHON={python}", f"VENV={tmp_path / 'venv'}"]
    outcome = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert outcome.returncode != 0 and not (tmp_path / "venv").exists()
    assert f"is Python {version}" in outcome.stdout and "3.11, 3.12 or 3.13" in outcome.stdout


def test_the_workflow_runs_makes_targets_on_every_python_that_make_accepts():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8"))["jobs"]
    commands = "\n".join(step.get("run", "") for job in jobs.values() for step in job["steps"])
    asked = set(re.findall(r"^make ([\w-]+)", commands, flags=re.M))
    assert asked and asked <= set(re.findall(r"^([\w-]+):", makefile, flags=re.M))
    first, last = map(int, re.search(r"\(3, (\d+)\) <= .* <= \(3, (\d+)\)", makefile).groups())
    assert jobs["suite"]["strategy"]["matrix"]["python"] == [f"3.{minor}" for minor in range(first, last + 1)]


@pytest.mark.parametrize("module", ["helpers.experiments", "tools.run_notebooks"])
def test_a_command_names_the_python_that_lacks_its_packages(module):
    command = [sys.executable, "-E", "-S", "-m", module]  # -S: without the installed packages
    outcome = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert outcome.returncode != 0
    assert outcome.stderr.startswith(f"error: this Python ({sys.executable}) has no package 'torch'")


def test_the_report_has_the_courseworks_headings_in_their_order():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    headings = ["Quick start", "Task 4: Evaluation and Analysis", "Model Types", "Odd Layer Model", "Even Layer Model"]
    headings += ["LoRA Model", "Evaluation Process", "Training loss", "Test set performance", "Expected Outcomes"]
    headings += ["Challenges Encountered and Improvements", "knowledge transfer", "layer selection", "overfitting"]
    headings += ["integration", "Proposed improvements", "Visualizations", "image.png", "image-1.png", "### Dataset"]
    places = [text.find(heading) for heading in headings]
    assert -1 not in places and places == sorted(places)


def test_the_example_for_contributors_is_an_experiment_that_can_stand_among_the_others():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(Experiment\(.*?)```", text, flags=re.S)
    example = eval(code, {"Experiment": Experiment})
    assert example.name not in EXPERIMENTS and experiment_settings(example, 1, PROFILES["base"])["layers"]


def test_the_published_predictions_hold_no_comment():
    paths = list((ROOT / "results").rglob("*.parquet"))
    columns = ["row_id", "split", "toxic", "logit_clean", "logit_toxic"]
    assert paths and all(list(pd.read_parquet(path)) == columns for path in paths)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_pictures_and_links_of_a_page_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = [target for target in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in target]
    assert targets and [target for target in targets if not (ROOT / target).exists()] == []
