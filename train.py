"""Fine-tunes a Vision Transformer, with MLP or KAN blocks, on a folder of class folders of photos.

    python train.py --data-path flower_photos --weights deit_tiny_patch16_224.safetensors
    python train.py --data-path flower_photos --weights FILE --freeze-layers false --mlp kan
    python train.py --resume weights/deit_tiny_patch16_224-flower_photos-1

A run writes its checkpoints, metrics and report into weights/<model>-<data>-<n>/ (run_dir.py) and
can be killed at any moment and resumed bit for bit. `--help` explains every flag.
"""

import argparse
from contextlib import ExitStack, closing, nullcontext
from pathlib import Path

import torch

import recipe
from batch_size import find_batch_size, trial_step, weight_of
from distributed import World, join_launch
from feature_cache import plan
from memory import advice_on_memory
from my_dataset import (
    DataSplit,
    MyDataSet,
    Preprocess,
    SeededSampler,
    eval_transform,
    prepare_data,
)
from options import default_workers, parse_args, pick_device, run_cli
from photo_loader import PhotoLoader
from pretrained import WeightsFile, calibrate, fetch_weights, load_into, load_model, read_weights
from results import show_start, write_results
from run_dir import (
    RunLog,
    advice_on_disk,
    check_output,
    find_run,
    locked,
    new_run_dir,
    write_class_indices,
)
from saved_state import check_alike, load_state, read_split
from scan import find_sides
from trainer import Trainer
from utils import evaluate, seed_everything, write_json, write_text
from vit_model import FAMILIES, VARIANTS, VisionTransformer, create_model, find_variant

DEFAULT_MODEL = "vit_base_patch16_224_in21k"
CALIBRATION_IMAGES = 256
# What may change when a run is resumed; everything else would make it another run.
MAY_CHANGE = {"epochs", "workers", "device", "save_steps", "patience", "resume", "output"}
MAY_CHANGE |= {"fsdp", "grad_checkpointing", "cache_images"}


# --- files -> data set -> model -----------------------------------------------------------------


def find_data(data_path: str, download: bool) -> str:
    """Returns where the data lies, once the flowers that the flags ask for are drawn or fetched."""
    if data_path == "sample":
        from sample_flowers import draw_samples

        return str(draw_samples("sample_flowers"))
    if download and not Path(data_path).exists():
        from pretrained import fetch_flower_photos

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


def model_config(
    args: argparse.Namespace, typed: set[str], weights: WeightsFile | None, num_classes: int
) -> dict:
    """Returns what `create_model` takes: the flags' before the weights file's before defaults."""
    if args.model or weights is None:
        config: dict = {"name": args.model or DEFAULT_MODEL}
    else:
        config = dict(weights.config)
        if config["num_classes"] != num_classes:  # a pre-logits layer belongs to the old head
            config["representation_size"] = None
    kan = ("mlp", "kan_blocks", "kan_hidden", "kan_rank", "kan_grid", "kan_order", "kan_range")
    # A KAN checkpoint keeps its own sizes unless the flag was typed.
    config |= {name: getattr(args, name) for name in kan if name in typed or name not in config}
    config |= {"num_classes": num_classes, "drop_path_rate": args.drop_path}
    if args.img_size:
        config["img_size"] = args.img_size
    return config


def build_model(
    args: argparse.Namespace, typed: set[str], weights: WeightsFile | None, classes: list[str]
) -> tuple[VisionTransformer, set[str]]:
    """Returns the model and the names of the parameters that came from the weights file."""
    model = create_model(**model_config(args, typed, weights, len(classes)))
    ignored = sorted(name for name in typed if name.startswith("kan_"))
    if model.sizes.mlp == "mlp" and ignored:
        flags = ", ".join("--" + name.replace("_", "-") for name in ignored)
        print(f"{flags}: ignored with --mlp mlp")
    if weights is None:
        here = VARIANTS[model.name].url and f" or --weights {model.name}"
        print(
            f"no pretrained weights: {model.name} starts from random numbers, for which a few "
            f"thousand photos are few; far better is --weights FILE{here or ''}"
        )
        return model, set()
    report = load_into(model, weights, classes, allow_partial=args.allow_partial)
    print("\n".join(report.lines()))
    return model, set(report.from_file)


def choose_preprocess(
    args: argparse.Namespace, model: VisionTransformer, weights: WeightsFile | None
) -> Preprocess:
    """Returns size and normalisation: the flags' before the weights' before the model's own."""
    if weights is not None:
        mean, std, why = weights.mean, weights.std, weights.family_reason
    else:
        mean, std = FAMILIES[VARIANTS[model.name].family]
        why = f"as {model.name} wants"
    if args.mean or args.std:
        mean, std, why = args.mean or mean, args.std or std, "--mean and --std"
    if weights is None or args.mean or args.std:  # else the weights' report has told
        print(f"normalisation: mean {_short(mean)}, std {_short(std)} ({why})")
    return Preprocess(model.sizes.img_size, args.resize_mode, mean=tuple(mean), std=tuple(std))


def _short(values) -> str:
    return " ".join(f"{value:g}" for value in values)


def calibrate_model(model: VisionTransformer, data: DataSplit, preprocess: Preprocess) -> None:
    """Sets the grid ranges of the KAN layers from training photos as prediction sees them."""
    dataset = MyDataSet(*data.train, eval_transform(preprocess))
    some = torch.linspace(0, len(dataset) - 1, min(len(dataset), CALIBRATION_IMAGES)).long()
    batches = [dataset.collate_fn(dataset.__getitems__(part.tolist())) for part in some.split(32)]
    report = calibrate(model, [batch.images for batch in batches])
    print("\n".join(report.lines()))


def check_flags(args: argparse.Namespace, device: torch.device) -> None:
    """Raises ValueError for what the flags of a new run alone can tell, before any work is done."""
    recipe.amp_dtype(args.amp, device)
    check_output(args.output, data_roots(args))
    if args.model:
        find_variant(args.model)


# --- the story of a run -------------------------------------------------------------------------


def fill_in(args, model: VisionTransformer, trainable, data: DataSplit, frozen, world) -> None:
    """Chooses every value that the user did not set, and prints each with its reason."""
    sizes = model.sizes
    if sizes.mlp == "mlp":
        spline = "none"
    elif sizes.mlp == "gkan":
        spline = "group"
    else:
        spline = "full" if sizes.kan_rank in (None, "full") else "low-rank"
    kind = "head" if frozen else "fine-tune" if args.weights else "scratch"
    case = recipe.Case(
        kind,
        len(data.train.paths),
        args.epochs,
        spline,
        one_view=frozen and args.cache_views == 1 and plan(model, trainable) > 0,
        world_size=world.size,
        accum_steps=args.accum_steps,
        optimizer=args.opt,
    )
    for name, (value, reason) in recipe.choose(case, vars(args)).items():
        setattr(args, name, value)
        args.reasons[name] = reason
        if name != "kan_lr_scale" or spline != "none":
            print(f"--{name.replace('_', '-')} {value}  ({reason})")


def try_batch_sizes(args, model: VisionTransformer, device, train_images: int, world) -> None:
    """Replaces `--batch-size auto` by the largest number that fits, the same in all processes."""
    model.grad_checkpointing = args.grad_checkpointing
    spare = weight_of(model) * ((args.ema > 0) + (args.teacher is not None))
    step = trial_step(model, device, recipe.amp_dtype(args.amp, device), args.opt, spare)
    processes = world.size * args.accum_steps
    found, why = find_batch_size(step, device, train_images, processes, world.local_size)
    args.batch_size = world.lowest(found)
    args.reasons["batch_size"] = why
    print(f"--batch-size {args.batch_size}  ({why})")


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
    teacher = teacher and recipe.Teacher(teacher, preprocess, data.classes)
    frozen = bool(weights) if args.freeze_layers is None else args.freeze_layers
    trainable = recipe.freeze(model, pretrained if frozen else ())
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


def device_of(args: argparse.Namespace, world: World) -> torch.device:
    return world.own(pick_device(args.device))


def describe(model, trainable: list[str], device, args, world: World) -> str:
    """Returns a line on the model: name, parameters in all and training, blocks, device, type."""
    count = {name: p.numel() for name, p in model.named_parameters()}
    sizes = model.sizes
    blocks = (
        ""
        if sizes.mlp == "mlp"
        else f", {sizes.mlp} in {len(sizes.kan_at)} of {sizes.depth} blocks"
    )
    amp = recipe.amp_dtype(args.amp, device)
    where = str(device) if world.size == 1 else f"{world.size} processes, {device.type}"
    return (
        f"{model.name}: {sum(count.values()):,} parameters, "
        f"{sum(count[name] for name in trainable):,} of them train{blocks}; "
        f"{where}, {str(amp or torch.float32).removeprefix('torch.')}"
    )


def data_roots(args: argparse.Namespace) -> list[str]:
    return [path for path in (args.data_path, args.val_path) if path]


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
    teacher = teacher and recipe.Teacher(teacher, preprocess, data.classes).to(device)
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


def share_batch(args: argparse.Namespace, before: int, now: int) -> None:
    """Keeps the total batch of a run that `before` processes began and `now` processes continue.

    Raises ValueError where they cannot share it equally.
    """
    if before == now:
        return
    total = args.batch_size * before
    if total % now:
        raise ValueError(
            f"the run took {total} photos together at each step, which {now} processes cannot "
            f"share equally: resume it on a number of processes that divides {total}"
        )
    args.batch_size = total // now
    print(
        f"begun on {before} process{'es' * (before > 1)}, resumed on {now}: {args.batch_size} "
        f"photos per process keep the total batch of {total}"
    )


def check_still_there(data: DataSplit) -> None:
    """Raises FileNotFoundError when photos of the split have vanished since the run began."""
    gone = [path for path in data.train.paths + data.val.paths if not Path(path).exists()]
    if gone:
        raise FileNotFoundError(
            f"{len(gone)} of the run's photos are gone, for instance {gone[0]}: put them back, or "
            f"start a new run"
        )


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
            from list_models import model_table

            print(model_table())
            return 0
        seed_everything(args.seed)
        with advice_on_memory(args):
            return evaluate_only(args, world) if args.eval else train(args, typed, world)


if __name__ == "__main__":
    run_cli(main)
