"""Runs of train.py for benchmarks: flags in, metrics, time and memory out, one JSON line for each.

`train` resumes a run that was cut off, so a benchmark can be killed and started again at any time.
"""

import csv
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from system.devices import amp_dtype

ROOT = Path(__file__).resolve().parent.parent


def train(name: str, flags: Sequence[str], work: Path, keep: Path | None = None) -> dict:
    """Runs train.py with `flags` and returns what came of it; raises SystemExit where it fails.

    The run is kept in `work` as `name` until it is finished, and its output in `name`.log; its
    last.pth is moved to `keep`. In the result, `epochs` are the rows of metrics.csv, `test_acc` is
    the accuracy on test photos, `test_log_loss` their log loss in nats (both None without),
    `seconds` the time of the whole command, `ended` that from its start to the end of each epoch
    (both None if it was cut off and resumed), `cpu_seconds` the processor's time with the loader's
    workers, `peak_mb` the memory of the largest process.
    """
    folder, log = work / name, work / f"{name}.log"
    command = [sys.executable, "train.py", *flags, "--output", str(folder)]
    resumed = (folder / "last.pth").exists()
    if resumed:
        command = [sys.executable, "train.py", "--resume", str(folder)]
    work.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as output:
        began, start = time.time(), time.perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"{name} failed: see {log}")
    with (folder / "metrics.csv").open(encoding="utf-8") as file:
        epochs = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
    results = json.loads((folder / "results.json").read_text("utf-8"))
    ended = [at - began for at in ends(folder)]
    if keep:
        os.replace(folder / "last.pth", keep)
    shutil.rmtree(folder)  # checkpoints of full-rank splines take half a gigabyte
    return {
        "epochs": epochs,
        "test_acc": results["test_acc"],
        "test_log_loss": results["test_log_loss"],
        "seconds": None if resumed else seconds,
        "ended": None if resumed else ended,
        "cpu_seconds": None if resumed else usage.ru_utime + usage.ru_stime,
        "peak_mb": usage.ru_maxrss / 1024,
    }


def ends(folder: Path) -> list[float]:
    """Returns when each epoch of a run ended, in seconds since 1970 (TensorBoard's events)."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    rows = events.Scalars("train_loss") if "train_loss" in events.Tags()["scalars"] else []
    return [row.wall_time for row in rows]


def provenance() -> dict:
    """Returns when and where a figure was measured.

    bf16: whether the processor computes in bfloat16, as `--amp auto` then does.
    """
    return {
        "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "bf16": amp_dtype("auto", torch.device("cpu")) is not None,
    }


def append_line(path: Path, result: dict) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(result, separators=(",", ":")) + "\n")


def read_lines(path: Path) -> list[dict]:
    """Returns the results in a file of JSON lines; none where it does not exist."""
    return (
        [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []
    )


def spread(values: list[float], digits: int) -> str:
    """Returns "mean (lowest to highest)", or the value where there is one."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ({min(values):.{digits}f} to {max(values):.{digits}f})"
