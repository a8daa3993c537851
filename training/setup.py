"""What a new run is made of before it begins: model, preprocessing, recipe."""

import argparse

import torch

from formats.fitting import load_into
from formats.reading import WeightsFile
from imaging.preprocess import Preprocess, eval_transform
from imaging.splitting import DataSplit
from my_dataset import MyDataSet
from parallel.world import World
from pretrained import calibrate
from system.devices import amp_dtype
from training.batch_size import find_batch_size, trial_step, weight_of
from training.choices import Case, choose
from training.feature_cache import plan
from training.run_folder import check_output
from vit_model import FAMILIES, VARIANTS, VisionTransformer, create_model, find_variant

DEFAULT_MODEL = "vit_base_patch16_224_in21k"
CALIBRATION_IMAGES = 256


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
    amp_dtype(args.amp, device)
    check_output(args.output, data_roots(args))
    if args.model:
        find_variant(args.model)


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
    case = Case(
        kind,
        len(data.train.paths),
        args.epochs,
        spline,
        one_view=frozen and args.cache_views == 1 and plan(model, trainable) > 0,
        world_size=world.size,
        accum_steps=args.accum_steps,
        optimizer=args.opt,
    )
    for name, (value, reason) in choose(case, vars(args)).items():
        setattr(args, name, value)
        args.reasons[name] = reason
        if name != "kan_lr_scale" or spline != "none":
            print(f"--{name.replace('_', '-')} {value}  ({reason})")


def try_batch_sizes(args, model: VisionTransformer, device, train_images: int, world) -> None:
    """Replaces `--batch-size auto` by the largest number that fits, the same in all processes."""
    model.grad_checkpointing = args.grad_checkpointing
    spare = weight_of(model) * ((args.ema > 0) + (args.teacher is not None))
    step = trial_step(model, device, amp_dtype(args.amp, device), args.opt, spare)
    processes = world.size * args.accum_steps
    found, why = find_batch_size(step, device, train_images, processes, world.local_size)
    args.batch_size = world.lowest(found)
    args.reasons["batch_size"] = why
    print(f"--batch-size {args.batch_size}  ({why})")


def describe(model, trainable: list[str], device, args, world: World) -> str:
    """Returns a line on the model: name, parameters in all and training, blocks, device, type."""
    count = {name: p.numel() for name, p in model.named_parameters()}
    sizes = model.sizes
    blocks = (
        ""
        if sizes.mlp == "mlp"
        else f", {sizes.mlp} in {len(sizes.kan_at)} of {sizes.depth} blocks"
    )
    amp = amp_dtype(args.amp, device)
    where = str(device) if world.size == 1 else f"{world.size} processes, {device.type}"
    return (
        f"{model.name}: {sum(count.values()):,} parameters, "
        f"{sum(count[name] for name in trainable):,} of them train{blocks}; "
        f"{where}, {str(amp or torch.float32).removeprefix('torch.')}"
    )


def data_roots(args: argparse.Namespace) -> list[str]:
    return [path for path in (args.data_path, args.val_path) if path]
