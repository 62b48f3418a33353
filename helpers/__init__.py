"""The code that the notebooks share, one topic a module; config.py is the first to read."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # of the project

if sys.argv[0] == "-m":  # `python -m helpers.…` is starting, perhaps with another Python than the project's
    for package in ("torch", "transformers", "datasets", "peft"):
        if find_spec(package) is None:
            found = f"error: this Python ({sys.executable}) has no package {package!r}"
            sys.exit(f"{found}: use the one in .venv, which `make` creates, or pip install -r requirements.txt")

# Before torch is imported: its threads wait actively, so that the next operation finds them awake, but give up after
# about 0.2 ms. On 2 idle cores giving up at once (1,000) made a training step 5 % longer; beside a busy program the
# default (300,000) made it a third longer.
os.environ.setdefault("GOMP_SPINCOUNT", "100000")

# Before the libraries that would report to their makers, and leave a device id in the home folder, are imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

# A Windows code page or ASCII lacks ✗, − and a bar's blocks: another character is shown, and the run goes on.
if hasattr(sys.stdout, "reconfigure"):  # a notebook's has none, and needs none
    sys.stdout.reconfigure(errors="replace")  # stderr never fails: it escapes what it lacks
