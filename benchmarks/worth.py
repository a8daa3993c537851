"""What splines are worth: forms of them beside LoRA, biases and the head alone, on photo sets.

    python -m benchmarks.worth --pack --data flower_photos trashnet clothing grocery --weights FILE
    python -m benchmarks.worth --quick              # two sets, two seeds: under an hour
    python -m benchmarks.worth --stage night        # four sets, five seeds
    python -m benchmarks.worth --stage controls     # other adapters at the same maps, a longer head
    python -m benchmarks.worth --stage layers       # all layers, with splines and without
    python -m benchmarks.worth --stage accuracy     # LoRA at the rate that accuracy chooses
    python -m benchmarks.worth --stage few          # the five forms at 50 photos
    python -m benchmarks.worth --stage variants     # one form of splines, a dozen changes
    python -m benchmarks.worth --stage gpu --device cuda --workers 8 --minutes 9
    python -m benchmarks.worth --stage night --show

Every stage reads worth.pack, appends one JSON line a run to benchmarks/worth.jsonl and ends with
its table. Lines that are there are not run again, so that any stage can be killed and started anew;
several workers share the work. Each form's rate is chosen with seed 0, by photos that it neither
trains on nor keeps for judging, and the search is widened until the best lies inside it; seeds 1
and up are reported, judged after the last epoch. A set without a test part is split anew by each
seed, so that choosing photos are among the judging ones, for every form alike. Differences are
taken photo by photo.
"""

import argparse
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from benchmarks.forms.pack import Pack, write
from benchmarks.forms.paired import Difference, Values, difference
from benchmarks.forms.table import BASE, FIVE, FORMS, SPLINES, VARIANTS
from benchmarks.forms.training import Job, cost, train
from benchmarks.runs import append_line, provenance, read_lines

RESULTS = Path(__file__).with_suffix(".jsonl")
FOUR = ("flower_photos", "trashnet", "clothing", "grocery")
TWO = ("trashnet", "clothing")
CHOSEN_AT = 200  # photos that rates are chosen with
PER_PHOTO = ("right", "millinats")
NAMES = FORMS | VARIANTS
BASE_NAME = next(name for name, form in FORMS.items() if form is BASE)


@dataclass(frozen=True)
class Stage:
    """words: what the table says of itself. search: the sets that choose each form's rate.

    by: what chooses it, "loss" or "accuracy", for a form is to be at its best in what it is judged
    by: with all layers training, or LoRA, the two differ twofold to eightfold, otherwise hardly.
    """

    words: str
    forms: tuple[str, ...]
    sets: tuple[str, ...]
    photos: tuple[int, ...]
    seeds: tuple[int, ...]
    search: tuple[str, ...]
    by: str = "loss"


STAGES = {
    "quick": Stage(
        "(a) quick: two sets, two seeds, 200 photos in training", FIVE, TWO, (200,), (1, 2), TWO
    ),
    "night": Stage(
        "(b) night: four sets, five seeds, 200 photos in training",
        FIVE, FOUR, (200,), (1, 2, 3, 4, 5), FOUR,
    ),
    "controls": Stage(
        "(b) more controls: four sets, five seeds, 200 photos in training",
        (
            "head alone, 40 epochs", "biases", "scale and shift", "LoRA r=4", "LoRA r=2, 4 maps",
            BASE_NAME,
        ),
        FOUR, (200,), (1, 2, 3, 4, 5), FOUR,
    ),
    "layers": Stage(
        "(b) all layers: four sets, five seeds, 200 photos in training",
        (
            "all layers", "all layers, spline per feature, 4 maps", BASE_NAME,
            "all layers, head at 1e-3", "all layers, spline per feature, 4 maps, head at 1e-3",
        ),
        FOUR, (200,), (1, 2, 3, 4, 5), FOUR, "accuracy",
    ),
    "accuracy": Stage(
        "(b) rates by accuracy: four sets, five seeds, 200 photos in training",
        ("LoRA r=4", "LoRA r=2, 4 maps", BASE_NAME), FOUR, (200,), (1, 2, 3, 4, 5), FOUR,
        "accuracy",
    ),
    "few": Stage(
        "few photos: four sets, three seeds, 50 photos in training, rates of (b)",
        FIVE, FOUR, (50,), (1, 2, 3), FOUR,
    ),
    "variants": Stage(
        f"variants of {BASE_NAME!r}: two sets, three seeds, 200 photos in training, at its rate",
        (BASE_NAME, *VARIANTS), TWO, (200,), (1, 2, 3), TWO,
    ),
    "gpu": Stage(
        "(c) GPU: all forms, four sets, two seeds, 450 photos in training",
        tuple(FORMS), FOUR, (450,), (1, 2), FOUR,
    ),
    "sizes": Stage(
        "(c) GPU: 50, 200 and 450 photos in training", FIVE, FOUR, (50, 200, 450), (1, 2), FOUR
    ),
}  # fmt: skip


# --- what is to be done -------------------------------------------------------------------------


def choosing(form: str, name: str, rate: float) -> Job:
    return Job(form, name, 0, CHOSEN_AT, rate, True)


def search(form: str, stage: Stage, done: dict[str, dict]) -> tuple[list[Job], float | None]:
    """Returns the runs that the choice of a form's rate still needs, and the rate when it is found.

    The lowest mean loss or the highest mean accuracy decides; where it lies at an edge, a rate
    beyond is tried.
    """
    if form in VARIANTS:
        return search(BASE_NAME, stage, done)
    rates = list(NAMES[form].rates)
    while True:
        jobs = [choosing(form, name, rate) for rate in rates for name in stage.search]
        missing = [job for job in jobs if job.key not in done]
        if missing:
            return missing, None
        scores = [score(form, rate, stage, done) for rate in rates]
        best = scores.index(max(scores))
        if 0 < best < len(rates) - 1:
            return [], rates[best]
        if best == 0:
            rates.insert(0, rates[0] / 2)
        else:
            rates.append(rates[-1] * 2)


def score(form: str, rate: float, stage: Stage, done: dict[str, dict]) -> float:
    """Returns the form's success on the photos that choose; the higher, the better."""
    sign = 1 if stage.by == "accuracy" else -1
    return sum(sign * done[choosing(form, name, rate).key][stage.by] for name in stage.search)


def reported(stage: Stage, form: str, rate: float) -> list[Job]:
    return [
        Job(form, name, seed, photos, rate, False)
        for seed in stage.seeds
        for photos in stage.photos
        for name in stage.sets
    ]


def pending(stage: Stage, done: dict[str, dict]) -> Iterator[Job]:
    """Yields the runs that can be made now, the choice of rates first."""
    rates = {}
    for form in stage.forms:
        jobs, rates[form] = search(form, stage, done)
        yield from jobs
    found = {form: rate for form, rate in rates.items() if rate is not None}
    jobs = [job for form, rate in found.items() for job in reported(stage, form, rate)]
    yield from (job for job in sorted(jobs, key=lambda job: job.seed) if job.key not in done)


def finished(path: Path) -> dict[str, dict]:
    return {line["key"]: line for line in read_lines(path)}


# --- doing it -----------------------------------------------------------------------------------


def claimed(job: Job, folder: Path) -> Path | None:
    """Takes a run for this process, so that no other makes it; None where another has it."""
    folder.mkdir(exist_ok=True)
    path = folder / job.key.replace(" ", "_").replace(",", "")
    try:
        owner = int(path.read_text("utf-8") or 0)
        os.kill(owner, 0)
        return None
    except (FileNotFoundError, ValueError):
        pass
    except ProcessLookupError:
        path.unlink(missing_ok=True)  # of a process that was killed
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(str(os.getpid()))
    except FileExistsError:
        return None
    return path


def work(stage: Stage, pack: Pack, args: argparse.Namespace) -> None:
    """Makes runs until none is left or the minutes are over."""
    device, over = torch.device(args.device), time.monotonic() + 60 * args.minutes
    torch.set_num_threads(args.threads)
    while time.monotonic() < over:
        jobs = list(dict.fromkeys(pending(stage, finished(args.results))))
        if not jobs:
            return
        for job in jobs:
            if claim := claimed(job, args.results.with_suffix(".claims")):
                break
        else:
            time.sleep(1)  # others make what the next runs wait for
            continue
        result = train(job, NAMES[job.form], pack, device)
        about = {"key": job.key} | asdict(job) | provenance() | {"device": device.type}
        each = PER_PHOTO if job.choosing else ()  # a rate is chosen by means
        append_line(args.results, about | {k: v for k, v in result.items() if k not in each})
        claim.unlink(missing_ok=True)
        print(f"{job.key}: {result['accuracy']:.3f}, {result['loss']:.3f}", flush=True)


def measure_costs(stage: Stage, args: argparse.Namespace) -> None:
    """Appends what a step of each form takes, each in a process of its own."""
    done = finished(args.results)
    for form in stage.forms:
        if f"cost of {form}" not in done and form not in VARIANTS:
            subprocess.run([*command(args), "--cost-of", form], check=True)


def command(args: argparse.Namespace) -> list[str]:
    flags = {"file": args.file, "results": args.results, "device": args.device}
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", "benchmarks.worth", *words]


# --- the tables ---------------------------------------------------------------------------------


def values(stage: Stage, form: str, photos: int, rate: float, done: dict, of: str) -> Values:
    """Returns one value for each judging photo: its log loss, or 1 where the answer is right."""
    found: Values = {}
    for name in stage.sets:
        found[name] = {}
        for seed in stage.seeds:
            line = done[Job(form, name, seed, photos, rate, False).key]
            right, loss = map(int, line["right"]), (x / 1000 for x in line["millinats"])
            found[name][seed] = [*(loss if of == "loss" else right)]
    return found


def mean(found: Values) -> float:
    means = [sum(v) / len(v) for seeds in found.values() for v in seeds.values()]
    return sum(means) / len(means)


def recommended(stage: Stage, done: dict[str, dict], rates: dict[str, float]) -> str:
    """Returns the spline form that did best on the photos that chose the rates."""
    if stage.forms[0] == BASE_NAME:
        return BASE_NAME
    forms = [form for form in stage.forms if form in SPLINES]
    return max(forms, key=lambda form: score(form, rates[form], stage, done))


def show(stage: Stage, pack: Pack, done: dict[str, dict], ours: str | None = None) -> str:
    """Returns the stage's tables, one for each number of photos, of the forms that have all runs.

    ours: the form that differences are of, by default the one that is recommended.
    """
    missing = {form: len(set(pending(replace(stage, forms=(form,)), done))) for form in stage.forms}
    words = [
        f"{form!r} is left out: at least {n} of its runs are still to be made"
        for form, n in missing.items()
        if n
    ]
    stage = replace(stage, forms=tuple(form for form, n in missing.items() if not n))
    if not SPLINES & {*stage.forms} or (ours and ours not in stage.forms):
        return "\n".join([stage.words, *words])
    rates = {form: search(form, stage, done)[1] for form in stage.forms}
    ours = ours or recommended(stage, done, rates)
    same = {name for name in stage.sets if pack.sets[name].test.any()}
    parts = [f"{stage.words}; differences are of {ours!r}, points of accuracy and nats", *words]
    for photos in stage.photos:
        found = {
            form: {
                of: values(stage, form, photos, rates[form], done, of) for of in ("right", "loss")
            }
            for form in stage.forms
        }
        counts = {
            form: done[Job(form, stage.sets[0], 1, photos, rates[form], False).key]["numbers"]
            for form in stage.forms
        }
        parts.append(f"\n{photos} photos in training\n")
        parts.append(compared(found, ours, same, counts, rates, done))
        parts.append(f"\naccuracy and loss of each set\n\n{by_set(stage, found)}")
    return "\n".join(parts)


def compared(found: dict, ours: str, same: set[str], counts: dict, rates: dict, done: dict) -> str:
    """Returns the table of forms. found: of each form its values, "right" and "loss"."""
    rows = []
    for form, one in found.items():
        against = []
        for of, scale in (("right", 100), ("loss", 1)):
            gap = form != ours and difference(found[ours][of], one[of], same)
            against += _words(gap, scale) if gap else ["", ""]
        step, peak = spent(form, ours, done)
        rows.append([
            f"**{form}**" if form == ours else form, f"{counts[form]:,}", f"{rates[form]:g}",
            f"{mean(one['right']):.3f}", f"{mean(one['loss']):.3f}", *against,
            step, peak,
        ])  # fmt: skip
    heads = (
        "form", "numbers", "rate", "accuracy", "loss", "accuracy: ours more", "seeds to decide",
        "loss: ours more", "seeds to decide", "step, ms", "peak, MB",
    )  # fmt: skip
    return markdown(heads, rows)


def spent(form: str, ours: str, done: dict) -> list[str]:
    """Returns a form's step and peak, empty where `ours` was measured in another arithmetic."""
    found, wanted = (done.get(f"cost of {name}") for name in (form, ours))
    if not found or not wanted or found.get("bf16", True) != wanted.get("bf16", True):
        return ["", ""]
    return [str(found["step_ms"]), str(found["peak_mb"])]


def by_set(stage: Stage, found: dict) -> str:
    """Returns the means over seeds for each set and form."""
    rows = [
        [name]
        + [
            ", ".join(f"{mean({name: one[of][name]}):.3f}" for of in ("right", "loss"))
            for one in found.values()
        ]
        for name in stage.sets
    ]
    return markdown(("set", *found), rows)


def _words(gap: Difference, scale: int) -> list[str]:
    digits = 1 if scale > 1 else 3
    low, middle, high = (f"{scale * x:+.{digits}f}" for x in (gap.low, gap.mean, gap.high))
    words = f"{middle} ({low} to {high})"
    seeds = "never" if gap.seeds == math.inf else str(gap.seeds or "")
    return [f"**{words}**" if gap.decided else words, seeds]


def markdown(heads, rows) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pack", action="store_true", help="write --file from --data, --weights")
    parser.add_argument("--data", nargs="+", default=[], help="folders named as the sets are")
    parser.add_argument("--weights", help="the pretrained model")
    parser.add_argument("--quick", action="store_true", help="the same as --stage quick")
    parser.add_argument("--stage", choices=STAGES, default="quick")
    parser.add_argument("--show", action="store_true", help="print the table of runs that are made")
    parser.add_argument("--ours", choices=NAMES, help="take differences of this form")
    parser.add_argument("--file", type=Path, default=Path("worth.pack"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=2, help="processes (default: 2)")
    parser.add_argument("--threads", type=int, default=1, help="of each (default: 1)")
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no run after so long")
    parser.add_argument("--cost-of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.pack:
        print(f"{args.file}: {write(args.file, args.data, args.weights) / 1e6:.1f} MB")
        return
    if not args.file.is_file():
        parser.error(f"--file {args.file} does not exist: --pack writes it (even --show reads it)")
    args.stage = "quick" if args.quick else args.stage
    stage, pack = STAGES[args.stage], Pack(args.file)
    if args.cost_of:
        torch.set_num_threads(args.threads)  # threads that wait for each other count as work
        spent = cost(FORMS[args.cost_of], pack, torch.device(args.device))
        append_line(args.results, {"key": f"cost of {args.cost_of}"} | provenance() | spent)
        return
    if not args.show:
        run(stage, pack, args)
    print(show(stage, pack, finished(args.results), args.ours))


def run(stage: Stage, pack: Pack, args: argparse.Namespace) -> None:
    """Makes the stage's runs with `--workers` processes, then measures what a step costs."""
    flags = ["--stage", args.stage, "--minutes", str(args.minutes), "--threads", str(args.threads)]
    others = [
        subprocess.Popen([*command(args), *flags, "--workers", "1"], stdout=subprocess.DEVNULL)
        for _ in range(args.workers - 1)
    ]
    work(stage, pack, args)
    for other in others:
        other.wait()
    if args.workers > 1 and not any(pending(stage, finished(args.results))):
        measure_costs(stage, args)


if __name__ == "__main__":
    main()
