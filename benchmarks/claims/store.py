"""Results of benchmarks/kan_claims.py: a line of JSON for each piece of work, kept for good.

A piece is a dict that says what is measured; what was measured already is read, not repeated.
"""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

SEEDS = (0, 1, 2)
TUNING_SEED = 100  # settings are chosen with it, and results come from SEEDS alone


class Store:
    """The lines of one file that belong to one scale, "quick" or "full"."""

    def __init__(self, path: Path, scale: str):
        self.path, self.scale = path, scale
        lines = path.read_text().splitlines() if path.exists() else []
        rows = [json.loads(line) for line in lines if line.strip()]
        self.all = [row for row in rows if row["piece"]["scale"] == scale]

    def once(self, piece: dict, measure: Callable[[], dict]) -> dict:
        """The row of `piece`, from the file or else by measuring it now."""
        piece = {"scale": self.scale, **piece}
        for row in self.all:
            if row["piece"] == piece:
                return row
        row = {"piece": piece, **json.loads(json.dumps(measure())), **circumstances()}
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self.all.append(row)
        names = (str(v) for k, v in piece.items() if k != "scale")
        print(time.strftime("%H:%M:%S"), ", ".join(names), flush=True)
        return row

    def rows(self, **wanted) -> list[dict]:
        """The rows whose pieces have these values."""
        return [r for r in self.all if all(r["piece"].get(k) == v for k, v in wanted.items())]


def circumstances() -> dict:
    return {
        "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} used",
    }


def clock(device: torch.device) -> float:
    """Seconds of this process's processor time; of the wall's where a GPU does the work.

    Processor time does not count what other work on the machine takes away.
    """
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def median(values: list[float]) -> float:
    return statistics.median(values)


def spread(values: list[float], form: str = ".1e") -> str:
    """ "median (lowest to highest)"."""
    if len(values) == 1:
        return f"{values[0]:{form}}"
    return f"{median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def table(header: list[str], rows: list[list]) -> str:
    """Rows as a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(v) for v in line) + " |" for line in lines)
