"""The files that describe the environment agree with each other."""

import re
import subprocess
import tomllib

import pandas as pd
import pytest
import yaml
from packaging.version import Version

from helpers import pipeline
from helpers.config import PROFILES
from helpers.experiments import EXPERIMENTS, Experiment, experiment_settings
from helpers.notebook import NEEDED
from helpers.runs import ROOT


def lines(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    return [line.split("#")[0].strip() for line in text.splitlines() if line.split("#")[0].strip()]


def names(requirements):
    return {re.split(r"[<>=!~]", line)[0].strip().lower().replace("_", "-") for line in requirements}


def test_every_requirement_is_pinned_in_constraints():
    assert names(lines("requirements.txt")) <= names(lines("constraints.txt"))


@pytest.mark.parametrize("file", ["constraints.txt", "constraints-lowest.txt"])
def test_every_constraint_is_an_exact_version(file):
    assert [line for line in lines(file) if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []


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
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    stated = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert [line for line in stated if "#" not in line] == []


def test_conda_installs_the_same_requirements_and_constraints():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    pip = next(entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert pip == ["-r requirements.txt", "-c constraints.txt"]
    assert environment["channels"] == ["conda-forge"]


def test_conda_takes_a_python_that_the_project_supports():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    python = next(entry for entry in environment["dependencies"] if str(entry).startswith("python="))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["requires-python"] == ">=3.11,<3.14"
    assert python.removeprefix("python=") in ("3.11", "3.12", "3.13")


def test_what_a_notebook_may_install_is_a_requirement_and_never_torch_or_numpy():
    assert set(NEEDED.values()) <= names(lines("requirements.txt"))
    assert not {"torch", "numpy"} & set(NEEDED.values())


@pytest.mark.parametrize("version", ["3.10.13", "3.14.0"])
def test_an_unsupported_python_gets_one_clear_line(tmp_path, version):
    python = tmp_path / "python-other"
    numbers = version.replace(".", ",")
    python.write_text(
        f'#!/bin/sh\nif [ "$1" = --version ]; then echo "Python {version}"; exit 0; fi\n'
        f'exec python3 -c "import sys; sys.version_info = ({numbers}, 0, 0); exec(sys.argv[1])" "$2"\n'
    )
    python.chmod(0o755)
    outcome = subprocess.run(
        ["make", "run", f"PYTHON={python}", f"VENV={tmp_path / 'venv'}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert outcome.returncode != 0
    assert f"is Python {version}" in outcome.stdout and "3.11, 3.12 or 3.13" in outcome.stdout
    assert not (tmp_path / "venv").exists()


def test_the_code_imports_nothing_from_modules_below():
    """helpers/ reads from top to bottom: a module imports only from those before it in DESIGN's order."""
    order = "config runs devices environment sample_comments data models layers losses lora batches targets training "
    order += "evaluation deploy experiments results improvements plots diagrams checks mistakes demo pipeline"
    place = {name: number for number, name in enumerate(order.split())}
    for path in (ROOT / "helpers").glob("*.py"):
        for imported in re.findall(r"^from helpers\.(\w+) import", path.read_text(encoding="utf-8"), flags=re.M):
            assert place[imported] < place[path.stem], f"{path.name} imports {imported}"


# --- links to Colab --------------------------------------------------------------------------------------------------


def test_colab_opens_the_notebook_of_the_repository_whose_address_is_set(monkeypatch):
    monkeypatch.setattr(pipeline, "repository", lambda: "https://github.com/ada/smaller-bert")
    link = pipeline.colab_link("02_layer_distillation")
    assert link.endswith("/github/ada/smaller-bert/blob/main/notebooks/02_layer_distillation.ipynb")
    assert pipeline.navigation("02_layer_distillation").endswith(f"[open in Colab]({link})")


def test_without_an_address_no_link_leads_to_colab(monkeypatch):
    monkeypatch.setattr(pipeline, "repository", lambda: "https://github.com/OWNER/smaller-bert")
    assert pipeline.colab_link("02_layer_distillation") is None
    assert "Colab" not in pipeline.navigation("02_layer_distillation")


# --- what is published -----------------------------------------------------------------------------------------------


def test_the_report_has_the_courseworks_headings_in_their_order():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    headings = ["Quick start", "Task 4: Evaluation and Analysis", "Model Types", "Odd Layer Model", "Even Layer Model"]
    headings += ["LoRA Model", "Evaluation Process", "Training loss", "Test set performance", "Expected Outcomes"]
    headings += ["Challenges Encountered and Improvements", "knowledge transfer", "layer selection", "overfitting"]
    headings += ["integration", "Proposed improvements", "Visualizations", "image.png", "image-1.png", "### Dataset"]
    places = [text.find(heading) for heading in headings]
    assert -1 not in places and places == sorted(places)


def test_the_example_for_contributors_is_an_experiment_that_can_stand_among_the_others():
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), flags=re.S)
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
