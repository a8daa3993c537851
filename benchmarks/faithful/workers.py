"""The part of a command line, and the processes, that the benchmarks of explanations share."""

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.runs import read_lines


def add_shared(parser: argparse.ArgumentParser, script: Path) -> None:
    """Adds the flags of models, results and processes; script: the benchmark's file."""
    parser.add_argument("--weights", metavar="FILE", help="the pretrained model")
    parser.add_argument("--models", type=Path, default=Path("runs") / script.stem,
                        metavar="DIR", help="where the trained models are kept")  # fmt: skip
    parser.add_argument("--results", type=Path, default=script.with_suffix(".jsonl"))
    parser.add_argument("--workers", type=int, default=1, help="processes (default: 1)")
    parser.add_argument("--threads", type=int, default=1, help="of each (default: 1)")
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no photo after so long")
    parser.add_argument("--show", action="store_true", help="print the tables of what is measured")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)


def share(args: argparse.Namespace, name: str, make: Callable, work: Callable, show: Callable):
    """Runs `make` once and `work` in --workers processes of the module `name`; prints the tables.

    make: (args). work: (args, the number of a worker). show: lines -> text.
    """
    if args.worker is not None:
        work(args, args.worker)
        return
    if not args.show:
        make(args)
        command = [sys.executable, "-m", name, *sys.argv[1:], "--worker"]
        others = [subprocess.Popen([*command, str(n)]) for n in range(1, args.workers)]
        work(args, 0)
        for other in others:
            other.wait()
    print(show(read_lines(args.results)))
