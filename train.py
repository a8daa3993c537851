"""Fine-tunes a Vision Transformer, with MLP or KAN blocks, on a folder of class folders of photos.

    python train.py --data-path flower_photos --weights deit_tiny_patch16_224.safetensors
    python train.py --data-path flower_photos --weights FILE --freeze-layers false --mlp kan
    python train.py --resume weights/deit_tiny_patch16_224-flower_photos-1

A run writes its checkpoints, metrics and report into weights/<model>-<data>-<n>/ and can be killed
at any moment and resumed bit for bit. `--help` explains every flag.
"""

import argparse
from contextlib import ExitStack, closing, nullcontext
from pathlib import Path

import torch

from formats.reading import WeightsFile, read_weights
from imaging.preprocess import Preprocess, eval_transform
from imaging.sample_flowers import draw_samples
from imaging.scanning import find_sides
from imaging.splitting import DataSplit, prepare_data
from my_dataset import MyDataSet, PhotoLoader, SeededSampler
from parallel.launch import join_launch
from parallel.world import World
from pretrained import fetch_weights, load_model, model_table
from system.devices import default_workers, pick_device, seed_everything
from system.downloads import fetch_flower_photos
from system.files import write_json, write_text
from system.terminal import run_cli
from training.advice import advice_on_memory
from training.flags import parse_args
from training.loss import Teacher
from training.optim import freeze
from training.results import show_start, write_results
from training.resuming import (
    MAY_CHANGE,
    check_alike,
    check_still_there,
    load_state,
    read_split,
    share_batch,
)
from training.run_folder import (
    RunLog,
    advice_on_disk,
    find_run,
    locked,
    new_run_dir,
    write_class_indices,
)
from training.setup import (
    build_model,
    calibrate_model,
    check_flags,
    choose_preprocess,
    data_roots,
    describe,
    fill_in,
    model_config,
    try_batch_sizes,
)
from training.trainer import Trainer
from utils import evaluate
from vit_model import VARIANTS, create_model


def find_data(data_path: str, download: bool) -> str:
    """Returns where the data lies, once the flowers that the flags ask for are drawn or fetched."""
    if data_path == "sample":
        return str(draw_samples("sample_flowers"))
    if download and not Path(data_path).exists():
        return str(fetch_flower_photos(data_path))
    return data_path


def load_data(args: argparse.Namespace) -> DataSplit:
    """Scans, checks and splits the data, and prints what was found."""
    data = prepare_data(
        args.data_path, args.val_path, args.val_split, args.seed, args.workers, args.num_classes
    )
    print("\n".join(data.report.lines()))
    return data


def find_weights(args: argparse.Namespace, world: World) -> WeightsFile | None:
    """Reads the file that --weights names, downloading it when that is a model's name."""
    if not args.weights:
        return None
    if args.weights in VARIANTS and not Path(args.weights).exists():
        args.weights = str(world.first_does(fetch_weights, args.weights))
    return read_weights(args.weights, model=args.model)


def start(
    args: argparse.Namespace, typed: set[str], world: World, held: ExitStack
) -> Trainer | None:
    """Prepares a new run: data, model, recipe, folder, lock. None with --dry-run."""
    device = device_of(args, world)
    check_flags(args, device)
    args.data_path = world.first_does(find_data, args.data_path, args.download)
    find_sides(args.data_path, args.val_path, [])  # refuses what are no folders of class folders
    weights = find_weights(args, world)
    with torch.device("meta"):  # sizes that do not fit are refused before photos are looked at
        create_model(**model_config(args, typed, weights, num_classes=2))
    teacher = args.teacher and load_model(args.teacher)
    data = world.first_does(load_data, args)
    model, pretrained = build_model(args, typed, weights, data.classes)
    preprocess = choose_preprocess(args, model, weights)
    teacher = teacher and Teacher(teacher, preprocess, data.classes)
    frozen = bool(weights) if args.freeze_layers is None else args.freeze_layers
    trainable = freeze(model, pretrained if frozen else ())
    args.reasons = {}
    if args.batch_size == "auto":
        try_batch_sizes(args, model.to(device), device, len(data.train.paths), world)
    fill_in(args, model, trainable, data, frozen, world)
    print(describe(model, trainable, device, args, world))
    if args.dry_run:
        print("--dry-run: nothing was trained or written")
        return None
    model.to(device)
    if model.sizes.mlp != "mlp" and args.kan_range == "auto" and world.first:
        calibrate_model(model, data, preprocess)
    world.copy_first(list(model.state_dict().values()))
    folder = world.first_does(
        new_run_dir, args.output, model.name, args.data_path, data_roots(args)
    )
    hold(folder, world, held, new=True)
    args.output = str(folder)
    teacher = teacher and teacher.to(device)
    return Trainer(args, folder, device, data, model, preprocess, trainable, teacher, world)


def hold(folder: Path, world: World, held: ExitStack, new: bool = False) -> None:
    """Takes the run's lock into `held` before what the run has saved is read."""
    if world.first:
        held.enter_context(locked(folder, new))
    held.enter_context(advice_on_disk(folder))
    world.wait()  # leftovers of a killed run are cleared


def resume(args: argparse.Namespace, typed: set[str], world: World, held: ExitStack) -> Trainer:
    """Prepares the continuation of a run; flags that would make it another run are refused."""
    folder = world.first_does(find_run, args.resume)
    hold(folder, world, held)
    state = load_state(folder)
    saved = argparse.Namespace(**vars(parse_args([])[0]) | state["args"])  # older runs know fewer
    for name in sorted(typed - {"resume", "output"}):
        new, old = getattr(args, name), getattr(saved, name, None)
        if new == old or (name, new) == ("batch_size", "auto"):
            continue
        flag = "--" + name.replace("_", "-")
        if name not in MAY_CHANGE:
            raise ValueError(
                f"{flag} {new} differs from the run in {folder} ({old}) and would make it another "
                f"run: leave it out to resume, or start anew with --output"
            )
        print(f"{flag}: {new} instead of {old}")
        setattr(saved, name, new)
    share_batch(saved, state["loader"].get("processes", 1), world.size)
    device = device_of(saved, world)
    data = read_split(folder, saved.data_path, state["classes"])
    check_still_there(data)
    model = create_model(**state["config"])
    preprocess = Preprocess.from_dict(state["preprocess"])
    teacher = saved.teacher and load_model(saved.teacher)
    teacher = teacher and Teacher(teacher, preprocess, data.classes).to(device)
    saved.output = str(folder)
    trainer = Trainer(
        saved, folder, device, data, model, preprocess, state["trainable"], teacher, world
    )
    stepper = trainer.stepper
    try:
        check_alike(state, stepper.optimizer, stepper.scheduler, stepper.scaler)
        trainer.restore(state)
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{folder / 'last.pth'} cannot be resumed: it {error}") from None
    return trainer


def device_of(args: argparse.Namespace, world: World) -> torch.device:
    return world.own(pick_device(args.device))


def write_start(trainer: Trainer, roots: list[str]) -> None:
    """Writes what is known before the first step: arguments, split, classes, data report."""
    folder, data = trainer.folder, trainer.data
    write_json(folder / "args.json", vars(trainer.args))
    write_json(folder / "split.json", data.to_dict())
    write_text(folder / "data_report.txt", data.report.text())
    changed = write_class_indices(data.classes, folder, roots)
    if changed:
        print(changed)


def train(args: argparse.Namespace, typed: set[str], world: World) -> int:
    """Trains a new run, or goes on with one; returns the exit status."""
    with ExitStack() as held:
        trainer = (resume if args.resume else start)(args, typed, world, held)
        if trainer is None:
            return 0
        report = trainer.folder / "report.html"  # written last, when a run is finished
        left = trainer.args.epochs - trainer.epoch
        if args.resume and (left <= 0 or trainer.out_of_patience()):
            print(f"{trainer.folder} is finished: {trainer.epoch} epochs were trained")
            if report.exists():
                return 0
        elif args.resume:
            print(f"resuming {trainer.folder} at epoch {trainer.epoch + 1}: {left} epochs to go")
        elif world.first:
            write_start(trainer, data_roots(args))
        with first_log(trainer) as log:
            if log:
                report.unlink(missing_ok=True)
                if not args.resume:
                    show_start(trainer, log)
            stopped_by = trainer.fit(log)
            if stopped_by:
                print(f"stopped and saved; go on with: python train.py --resume {trainer.folder}")
                return 128 + stopped_by
            answers = trainer.validate_best()
            if log:
                write_results(trainer, log, answers)
    return 0


def first_log(trainer: Trainer):
    """Returns the context of the run's log, which is None in all processes but the first."""
    if not trainer.world.first:
        return nullcontext()
    return closing(RunLog(trainer.folder, trainer.history))


def evaluate_only(args: argparse.Namespace, world: World) -> int:
    """Evaluates --weights on the validation photos of --data-path and prints the accuracy."""
    device = device_of(args, world)
    args.batch_size = 32 if args.batch_size in (None, "auto") else args.batch_size
    args.data_path = world.first_does(find_data, args.data_path, args.download)
    find_sides(args.data_path, args.val_path, [])
    loaded = load_model(args.weights, device=device)
    data = world.first_does(load_data, args)
    unknown = sorted(set(data.classes) - set(loaded.classes))
    if unknown:
        raise ValueError(
            f"{args.weights} does not know the classes {', '.join(unknown)} of {args.data_path}; "
            f"it knows {', '.join(loaded.classes[:20])}"
        )
    labels = [loaded.classes.index(data.classes[label]) for label in data.val.labels]
    dataset = MyDataSet(data.val.paths, labels, eval_transform(loaded.preprocess))
    order = SeededSampler(len(dataset), args.seed, False, world.rank, world.size)
    loader = PhotoLoader(dataset, args.batch_size, order, args.workers, device)
    result, _, _ = evaluate(loaded.model, loader, device, world=world)
    print(
        f"{args.weights} on {result.samples} validation photos of {args.data_path}: "
        f"accuracy {result.accuracy:.4f}, loss {result.loss:.4f}"
    )
    return 0


def main() -> int:
    with join_launch() as world:
        args, typed = world.first_does(parse_args)
        if args.workers is None:
            args.workers = default_workers(world.local_size)
        if args.list_models:
            print(model_table())
            return 0
        seed_everything(args.seed)
        with advice_on_memory(args):
            return evaluate_only(args, world) if args.eval else train(args, typed, world)


if __name__ == "__main__":
    run_cli(main)
