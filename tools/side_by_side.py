"""Trains a run with several seeds side by side on one GPU, for a machine that may be taken away at any moment.

    python -m tools.side_by_side OUT.tar teacher odd even lora --profile base

All seeds of one experiment are trained before the next one begins, and every minute what is finished is packed, laid
out as results/<profile>/. So whenever it ends, `tar xf OUT.tar -C results` and `make tables` publish what there is.
Six processes train 2.7 times the comments of one on an H100, and take 3 GB of the host's memory each.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

from helpers.experiments import experiment_seeds, find_experiment, prepare
from helpers.runs import Run, open_run, parse_run, tells_errors, write_file
from tools.publish import copy_results

PACK_SECONDS = 60


def pack(run: Run, target: Path) -> None:
    """Packs the run's finished results and predictions, whole or not at all; what stood there before is replaced."""
    with tempfile.TemporaryDirectory() as folder:
        copy_results(run, Path(folder) / run.profile.name)

        def write(temporary: Path) -> None:
            with tarfile.open(temporary, "w") as archive:
                archive.add(Path(folder) / run.profile.name, run.profile.name)

        write_file(target, write)


def train(name: str, seed: int) -> int:
    """Trains one experiment with one seed in a process of its own; returns its exit code."""
    command = [sys.executable, "-m", "helpers.experiments", name, "--seeds", str(seed)]
    return subprocess.run(command, stdout=subprocess.DEVNULL).returncode


@tells_errors
def main(arguments: list[str] | None = None) -> int:
    """Trains the experiments asked for; returns 0 if all of them were, else 1."""
    parser = argparse.ArgumentParser(prog="python -m tools.side_by_side", description=__doc__.splitlines()[0])
    parser.add_argument("target", type=Path, help="the tar file that what is finished is packed into")
    parser.add_argument("names", nargs="*", help="which experiments, in this order (default: the profile's)")
    parser.add_argument("--processes", type=int, default=6, help="trainings at a time (default: 6)")
    options = parse_run(parser, arguments)
    run = open_run()
    os.environ["RUN"] = run.name  # for the processes
    names = options.names or list(run.profile.experiments)
    experiments = [find_experiment(name) for name in (names if "teacher" in names else ["teacher", *names])]
    prepare(run)
    pack(run, options.target)  # a place that cannot be written to is said now
    failed = []
    with ThreadPoolExecutor(options.processes) as pool:
        for experiment in experiments:
            seeds = experiment_seeds(experiment, run.seeds)
            codes = {seed: pool.submit(train, experiment.name, seed) for seed in seeds}
            while wait(codes.values(), timeout=PACK_SECONDS).not_done:
                pack(run, options.target)
            lost = [seed for seed, code in codes.items() if code.result()]
            print(f"{experiment.name}: seeds {seeds} trained{f', failed: {lost}' if lost else ''}", flush=True)
            failed += lost
            pack(run, options.target)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
