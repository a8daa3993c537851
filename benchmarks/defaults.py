"""What the commands reach by their own defaults, on folders of 50, 200 and all photos.

    python -m benchmarks.defaults --data flower_photos trashnet clothing grocery --weights FILE
    python -m benchmarks.defaults ... --photos 200 --commands "--freeze-layers false --lr 2e-4"
    python -m benchmarks.defaults --show
    python -m benchmarks.defaults --show --ours "--freeze-layers false --mlp gkan"

Each run is `python train.py` on a folder of so many photos, of which it keeps a fifth for
validation, judged by --test-path: the set's own test part, or 40 % of its photos. Nothing but its
own flags, the seed and --img-size is given. A line a run in benchmarks/defaults.jsonl; what has a
line is not run again.
"""

import argparse
import itertools
import math
import os
import statistics
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from scipy.stats import t as student

from benchmarks import runs
from benchmarks.forms.pack import photos_of
from benchmarks.forms.training import JUDGED, drawn

RESULTS = Path(__file__).with_suffix(".jsonl")
OURS = "--mlp gkan"
HEAD = "head alone"
COMMANDS = (
    HEAD, OURS, "--adapt bias", "--adapt affine", "--adapt lora", "--freeze-layers false",
    "--freeze-layers false --mlp gkan",
)  # fmt: skip
LEAST = 2  # photos of a class: train.py asks for one to train on and one to validate on
ALL = 0  # a number of photos: as many as there are


@dataclass(frozen=True)
class Job:
    """A command on so many photos of the set in a folder, from some weights, at so many pixels."""

    command: str
    set: str
    photos: int
    seed: int
    img_size: int = 160
    weights: str = "deit_tiny_patch16_224"

    @classmethod
    def of(cls, line: dict) -> "Job":
        """Returns whose line of the results it is; those of the first days do not name weights."""
        return cls(**{field: line[field] for field in cls.__dataclass_fields__ if field in line})


def jobs(args: argparse.Namespace) -> Iterator[tuple[Job, Path]]:
    """Yields the runs that have no line yet, those of few photos first, and their folders."""
    done = {Job.of(line) for line in runs.read_lines(args.results)}
    fewest = {data: LEAST * len(photos_of(data)[0]) for data in args.data}
    for photos, seed, data, name in itertools.product(
        args.photos, args.seeds, args.data, args.commands
    ):
        job = Job(name, data.name, photos, seed, args.img_size, weights_of(args))
        enough = photos == ALL or photos >= fewest[data]  # groceries at 50 photos have too few
        if enough and job not in done:
            yield job, data


def weights_of(args: argparse.Namespace) -> str:
    """Returns what lines call the pretrained model."""
    return Path(args.weights).stem if args.weights else Job.weights


def flags_of(command: str) -> list[str]:
    return [] if command == HEAD else command.split()


def lay_out(job: Job, data: Path, root: Path) -> None:
    """Links the photos of a run: root/train/CLASS/N and root/test/CLASS/N."""
    classes, rows = photos_of(data)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(job.seed)).tolist()
    test = [i for i in order if rows[i][2]] or order[: int(JUDGED * len(order))]
    judging = set(test)
    pool = torch.tensor([i for i in order if i not in judging])
    labels = torch.tensor([rows[i][1] for i in pool.tolist()])
    train = pool[drawn(labels, job.photos or len(pool), LEAST)].tolist()
    for part, chosen in (("train", train), ("test", test)):
        for i in chosen:
            path, label, _ = rows[i]
            link = root / part / classes[label] / f"{i}{Path(path).suffix}"
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(Path(path).resolve())


def run(job: Job, data: Path, args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        lay_out(job, data, root)
        flags = [
            "--data-path", root / "train", "--test-path", root / "test", "--weights", args.weights,
            *flags_of(job.command), "--seed", job.seed, "--img-size", job.img_size, "--workers", 0,
        ]  # fmt: skip
        result = runs.train("run", [str(flag) for flag in flags], root)
    found = {key: round(result[key], 5) for key in ("test_acc", "test_log_loss", "cpu_seconds")}
    runs.append_line(args.results, asdict(job) | found | runs.provenance())
    print(*asdict(job).values(), found, flush=True)


# --- the table ----------------------------------------------------------------------------------

Found = dict[tuple[str, int], float]  # a measure by set and seed


@dataclass(frozen=True)
class Measure:
    """What a line says of the photos that judge: its key, and how a difference is printed."""

    key: str
    name: str
    unit: str
    scale: float
    digits: int


MEASURES = (
    Measure("test_acc", "accuracy", "points", 100, 1),
    Measure("test_log_loss", "log loss", "nats", 1, 3),  # lines of before 2026-11-30 have none
)


def difference(ours: Found, theirs: Found) -> tuple[float, float]:
    """Returns the mean over sets of ours minus theirs, and half of its 95 % interval by the seeds.

    The sets are fixed: the spread of the seeds within each tells how sure the mean is, by Student's
    t with the degrees of freedom that Welch gives such a sum. A single seed tells nothing (nan).
    """
    per_set: dict[str, list[float]] = {}
    for name, seed in sorted(ours.keys() & theirs.keys()):
        per_set.setdefault(name, []).append(ours[name, seed] - theirs[name, seed])
    mean = statistics.fmean(statistics.fmean(values) for values in per_set.values())
    if min(map(len, per_set.values())) < 2:
        return mean, math.nan
    spreads = [(statistics.variance(v) / len(v), len(v) - 1) for v in per_set.values()]
    squared = sum(spread for spread, _ in spreads)
    freedom = squared**2 / (sum(spread**2 / of for spread, of in spreads) or 1.0)
    return mean, student.ppf(0.975, max(1.0, freedom)) * math.sqrt(squared) / len(per_set)


def show(lines: list[dict], ours: str = OURS) -> str:
    """Returns the tables, by number of photos and measure. ours: what differences are of."""
    told = []
    for photos in sorted({line["photos"] for line in lines}, key=lambda n: n or math.inf):
        for measure in MEASURES:
            mine = [line for line in lines if line["photos"] == photos and measure.key in line]
            if mine:
                told += [f"\n{photos or 'all'} photos, {measure.name}\n"]
                told += _table(mine, ours, measure)
    return "\n".join(told)


def _table(lines: list[dict], ours: str, measure: Measure) -> Iterator[str]:
    sets = list(dict.fromkeys(line["set"] for line in lines))
    found: dict[str, Found] = {}
    for line in lines:
        found.setdefault(line["command"], {})[line["set"], line["seed"]] = line[measure.key]
    difference_of = f"{ours} more, {measure.unit}"
    columns = "command", "runs", *sets, "mean", difference_of, "processor, s a run"
    yield f"| {' | '.join(columns)} |"
    yield f"|{'---|' * len(columns)}"
    for name in sorted(found, key=(*COMMANDS, *found).index):
        means = _means(found[name], sets)
        cells = ["" if math.isnan(mean) else f"{mean:.3f}" for mean in means]
        differs = name != ours and ours in found
        more = _more(found[ours], found[name], measure) if differs else ""
        spent = [line["cpu_seconds"] for line in lines if line["command"] == name]
        row = name, f"{len(spent)}", *cells, more, f"{statistics.fmean(spent):.0f}"
        yield f"| {' | '.join(row)} |"


def _means(values: Found, sets: list[str]) -> list[float]:
    """Returns the mean of each set, nan where it has none, and theirs."""
    per_set = [[v for (of, _), v in values.items() if of == name] for name in sets]
    means = [statistics.fmean(found or [math.nan]) for found in per_set]
    return [*means, statistics.fmean(means)]


def _more(ours: Found, theirs: Found, measure: Measure) -> str:
    if not ours.keys() & theirs.keys():
        return ""
    mean, half = (measure.scale * value for value in difference(ours, theirs))
    width = "" if math.isnan(half) else f" (± {half:.{measure.digits}f})"
    return f"{mean:+.{measure.digits}f}{width}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, nargs="+", default=[], help="folders of the sets")
    parser.add_argument("--weights", help="the pretrained model (in the tables: DeiT-Tiny)")
    parser.add_argument("--photos", type=int, nargs="+", default=[50, 200, ALL],
                        help="photos of the folder, 0 for all; what runs, and stands in the "
                             "tables (default: 50 200 0)")  # fmt: skip
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3],
                        help="what runs, and stands in the tables (default: 1 2 3)")  # fmt: skip
    parser.add_argument("--commands", nargs="+", default=list(COMMANDS), metavar="FLAGS",
                        help="each in quotes (default: those of the tables)")  # fmt: skip
    parser.add_argument("--img-size", type=int, default=160)
    parser.add_argument("--workers", type=int, default=2, help="runs at once, a thread each")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--show", action="store_true", help="print the tables of what is measured")
    parser.add_argument("--ours", default=OURS, metavar="FLAGS",
                        help=f"take differences of this command (default: {OURS})")  # fmt: skip
    args = parser.parse_args()
    if not args.show:
        args.weights = str(Path(args.weights).resolve())
        os.environ["OMP_NUM_THREADS"] = "1"
        with ThreadPoolExecutor(args.workers) as pool:
            list(pool.map(lambda pair: run(*pair, args), list(jobs(args))))
    lines = [
        line
        for line in runs.read_lines(args.results)
        if (job := Job.of(line)).photos in args.photos
        and job.seed in args.seeds
        and (job.img_size, job.weights) == (args.img_size, weights_of(args))
    ]
    print(show(lines, args.ours))


if __name__ == "__main__":
    main()
