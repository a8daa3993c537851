"""What a run is made of, and how a new one gets it: model, preprocessing, chosen values."""

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from formats.fitting import load_into
from formats.reading import WeightsFile
from imaging.depth import Range
from imaging.digests import TrainedOn, digests, joined
from imaging.preprocess import Preprocess, eval_transform
from imaging.splitting import DataSplit
from my_dataset import MyDataSet
from parallel.world import ALONE, World
from pretrained import calibrate
from system.devices import amp_dtype
from system.flags import flag_of
from training.batch_size import find_batch_size, trial_step, weight_of
from training.choices import Case, Chosen, choose
from training.feature_cache import run_once
from training.flags import Options
from training.loss import Teacher
from training.position import Position
from training.run_folder import check_output
from vit.adapters import ADAPTERS
from vit.config import OF_FAMILY
from vit_model import FAMILIES, VARIANTS, VisionTransformer, create_model, find_variant

DEFAULT_MODEL = "vit_base_patch16_224_in21k"
CALIBRATION_IMAGES = 256


@dataclass
class Run:
    """What a run is made of, before its first step or the next one.

    options: settled, so that nothing is left to be chosen; reasons: why, by name.
    trainable: names of the parameters that train; the others never change.
    world: the processes that train together; all do the same, the first alone prints and writes.
    state: what last.pth holds of a run that goes on.
    backbone: `adapter_file.record_of` the weights with --save-adapter, else None.
    photo_seconds: what the frozen layers took for a photo, where they ran once.
    trained_on: the digests of the photos that the model has been trained on, also before.
    epochs_of_folds: how many epochs the folds found right for all photos, once they have.
    ranked: the `ranking.Ranked` of --weights auto, whose features may serve.
    """

    options: Options
    reasons: dict[str, str]
    folder: Path
    device: torch.device
    data: DataSplit
    model: VisionTransformer
    preprocess: Preprocess
    trainable: list[str]
    teacher: Teacher | None = None
    world: World = ALONE
    state: dict | None = None
    _: KW_ONLY
    position: Position = field(default_factory=Position)
    backbone: dict | None = None
    photo_seconds: float | None = None
    trained_on: str = ""
    epochs_of_folds: int | None = None
    ranked: Any = None

    @property
    def frozen(self) -> set[str]:
        """The names of the parameters that never change."""
        return {name for name, _ in self.model.named_parameters()} - set(self.trainable)

    @property
    def sharded(self) -> bool:
        return self.options.fsdp and self.world.size > 1

    @property
    def amp_dtype(self) -> torch.dtype | None:
        return amp_dtype(self.options.amp, self.device)

    @property
    def settings(self) -> dict:
        """The options as args.json and last.pth keep them, with the reasons of what was chosen."""
        return self.options.to_dict() | {"reasons": self.reasons}

    @property
    def warmup(self) -> int:
        """How many epochs belong to the warm-up, of which none is the best one; never the last."""
        options = self.options
        return min(math.ceil(options.warmup_epochs or 0), max(0, options.epochs - 1))

    @property
    def batches_per_epoch(self) -> int:
        return self.batches_over(len(self.data.train.paths))

    def batches_over(self, photos: int) -> int:
        """Returns how many batches each process takes to share so many photos."""
        return math.ceil(photos / (self.options.batch_size * self.world.size))

    @property
    def epochs(self) -> int:
        """How many epochs are trained; the schedule is that of the options, whole or not."""
        found = self.epochs_of_folds
        return self.options.epochs if found is None else found

    def over(self) -> bool:
        """Whether there is no epoch left to train."""
        patience = self.position.out_of_patience(self.options.patience, self.warmup)
        return self.position.epoch >= self.epochs or patience


def photos_trained_on(data: DataSplit, before: str, options: Options) -> str:
    """Returns the digests of the photos that a new run's model will have been trained on.

    before: of those that the one in --weights was trained on; says so where they are judged.
    """
    judged = data.train.paths if options.folds else data.val.paths
    judged = judged + (data.test.paths if data.test else [])
    known = sum(TrainedOn(before).among(judged, options.workers))
    if known:
        print(
            f"note: the model in {options.weights} was trained on {known} of the {len(judged)} "
            f"photos that judge this run: the accuracy will be too good; take other weights"
        )
    return with_photos(before, data, options)


def with_photos(before: str, data: DataSplit, options: Options) -> str:
    """Returns digests with those of the photos that a run trains on, if it trains at all."""
    return joined(before, digests(data.train.paths, options.workers) if options.epochs else "")


# --- model --------------------------------------------------------------------------------------


def model_config(options: Options, weights: WeightsFile | None, num_classes: int) -> dict:
    """Returns what `create_model` takes: the flags' before the weights file's before defaults."""
    if options.model or weights is None:
        config: dict = {"name": options.model or DEFAULT_MODEL}
    else:
        config = dict(weights.config)
        if config["num_classes"] != num_classes:  # a pre-logits layer belongs to the old head
            config["representation_size"] = None
    kan = ("mlp", "kan_blocks", "kan_hidden", "kan_rank", "kan_grid", "kan_order", "kan_range")
    # A KAN checkpoint keeps its own sizes unless the flag was typed.
    told = [name for name in kan if name in options.given or name not in config]
    config |= {name: getattr(options, name) for name in told}
    config |= spline_form(options, config["mlp"], {} if weights is None else weights.config)
    if options.model and weights is not None:  # what no variant's name tells
        config |= {key: weights.config[key] for key in OF_FAMILY if key in weights.config}
        config |= told_heads(options.model, weights)
    # Biases are the model's own; what a file has of adapters is merged when a run begins.
    adapters = {name: getattr(options, name) for name in ("adapt", "lora_rank", "lora_at")}
    config |= adapters if options.adapt in ADAPTERS else {"adapt": "none"}
    config |= {"num_classes": num_classes, "drop_path_rate": options.drop_path}
    config["answers"] = "softmax"  # which training makes of them
    if options.img_size:
        config["img_size"] = options.img_size
    return config


def told_heads(model: str, weights: WeightsFile) -> dict:
    """Returns the attention heads of a file whose model is as wide as a variant, where it tells.

    Heads leave no trace in a shape: weights of three would load into a model of six.
    """
    same = find_variant(model).sizes["embed_dim"] == weights.config["embed_dim"]
    assumed = "attention heads" in weights.facts.assumed
    return {"num_heads": weights.config["num_heads"]} if same and not assumed else {}


def spline_form(options: Options, kind: str, held: Mapping) -> dict:
    """Returns which inputs have splines, and how many: the flags' before those in the file.

    kind: what will stand in the blocks. held: the config of the weights file, which says nothing on
    splines where it has none, whatever its fields.
    """
    form = {"mlp": kind, "kan_groups": "feature"} | form_of(held)
    form |= {n: getattr(options, n) for n in ("kan_groups", "kan_at") if n in options.given}
    # A spline of each feature is worth most at every map: "What splines are worth" in the results.
    each = kind == "gkan" and form["kan_groups"] == "feature"
    return form_of({"kan_at": "all" if each else "mlp"} | form)


def form_of(config: Mapping) -> dict:
    """Returns of a model's config which inputs have splines, and how many, where they have any."""
    form: dict = {}
    if config.get("mlp", "mlp") != "mlp":
        form["kan_at"] = config.get("kan_at", "mlp")
    if config.get("mlp") == "gkan":
        form["kan_groups"] = config.get("kan_groups", 8)  # what older files mean
    return form


def check_sizes(options: Options, weights: WeightsFile | None) -> None:
    """Raises ValueError for sizes and flags that do not fit, before a photo is looked at."""
    with torch.device("meta"):
        model = create_model(**model_config(options, weights, num_classes=2))
    options.refuse_idle(mlp=model.sizes.mlp)


def build_model(
    options: Options, weights: WeightsFile | None, classes: list[str]
) -> tuple[VisionTransformer, set[str]]:
    """Returns the model and the names of the parameters that came from the weights file."""
    model = create_model(**model_config(options, weights, len(classes)))
    if weights is None:
        here = VARIANTS[model.name].url and f" or --weights {model.name}"
        print(
            f"no pretrained weights: {model.name} starts from random numbers, for which a few "
            f"thousand photos are few; far better is --weights FILE{here or ''}"
        )
        return model, set()
    report = load_into(model, weights, classes, allow_partial=options.allow_partial)
    print("\n".join(report.lines()))
    return model, set(report.from_file)


def choose_preprocess(
    options: Options,
    model: VisionTransformer,
    weights: WeightsFile | None,
    ranges: Mapping[str, Range],
) -> tuple[Preprocess, list[str]]:
    """Returns how photos are prepared: as the flags say, else the weights, else the model's own.

    And a line on each thing that the report on the weights has not told. A crop keeps its share of
    the photo at another size. ranges: of the data set, see `depth.Reading`.
    """
    if weights is not None:
        told, why, photos_from = weights.preparation, weights.family_reason, weights.photos_from
    else:
        mean, std = FAMILIES[VARIANTS[model.name].family]
        told = Preprocess(model.sizes.img_size, mean=mean, std=std)
        why, photos_from = f"as {model.name} wants", "the default"
    chosen = replace(told.of_size(model.sizes.img_size), ranges=ranges, colour_space="srgb")
    if options.mean or options.std:
        mean, std = options.mean or told.mean, options.std or told.std
        chosen, why = replace(chosen, mean=mean, std=std), "--mean and --std"
    if options.resize_mode:
        chosen = replace(chosen, resize_mode=options.resize_mode, resize=None)
        photos_from = "--resize-mode"
    lines = []
    if weights is None or options.mean or options.std:
        lines += [f"normalisation: mean {_short(chosen.mean)}, std {_short(chosen.std)} ({why})"]
    if weights is None or chosen.words != told.words:
        lines += [f"photos: {chosen.words} ({photos_from})"]
    return chosen, lines


def _short(values) -> str:
    return " ".join(f"{value:g}" for value in values)


def calibrate_model(model: VisionTransformer, data: DataSplit, preprocess: Preprocess) -> None:
    """Sets the grid ranges of the KAN layers from training photos as prediction sees them."""
    dataset = MyDataSet(*data.train, eval_transform(preprocess))
    some = torch.linspace(0, len(dataset) - 1, min(len(dataset), CALIBRATION_IMAGES)).long()
    batches = [dataset.collate_fn(dataset.__getitems__(part.tolist())) for part in some.split(32)]
    report = calibrate(model, [batch.images for batch in batches])
    print("\n".join(report.lines()))


def check_flags(options: Options, device: torch.device) -> None:
    """Raises ValueError for what the flags of a new run alone can tell, before any work is done."""
    if not options.weights:
        options.refuse_idle(mlp=options.mlp)
    amp_dtype(options.amp, device)
    read = options.weights, options.teacher, *(options.exclude or ())
    check_output(options.output, options.data_roots, read)
    if options.model:
        find_variant(options.model)


# --- recipe -------------------------------------------------------------------------------------


def case_of(
    options: Options,
    model: VisionTransformer,
    pretrained: set[str],
    trainable: list[str],
    data: DataSplit,
    world: World,
) -> Case:
    """Returns what the values depend on that the user did not set.

    pretrained: the names of parameters that came from the weights file.
    """
    photos = len(data.train.paths)
    kind = "head" if options.frozen else "fine-tune" if options.weights else "scratch"
    return Case(
        kind,
        photos,
        options.epochs,
        spline_kind(model),
        one_view=options.cache_views == 1 and run_once(model, trainable, options, world) > 0,
        world_size=world.size,
        accum_steps=options.accum_steps,
        optimizer=options.opt,
        new_head="head.weight" not in pretrained,
        adapt=options.adapt,
        val_images=photos // options.folds if options.folds else len(data.val.paths),
        width=model.sizes.embed_dim,
    )


def spline_kind(model: VisionTransformer) -> str:
    """Returns the splines of a model as `Case` calls them."""
    sizes = model.sizes
    if sizes.mlp != "kan":
        return {"mlp": "none", "gkan": "group"}[sizes.mlp]
    return "full" if sizes.kan_rank in (None, "full") else "low-rank"


def settle(
    options: Options, case: Case, chosen: Chosen, model: VisionTransformer
) -> tuple[Options, dict[str, str]]:
    """Returns the options with a value for all that was left to choose, and the reasons by name.

    chosen: what has been found by trying.
    """
    given = options.to_dict() | {name: value for name, (value, _) in chosen.items()}
    chosen = chosen | choose_values(case, given)
    values = {name: value for name, (value, _) in chosen.items()} | form_of(model.config)
    return options.settled(**values), {name: reason for name, (_, reason) in chosen.items()}


def choose_values(case: Case, given: Mapping) -> Chosen:
    """Returns `choices.choose`'s values after printing each with its reason."""
    chosen = choose(case, given)
    for name, (value, reason) in chosen.items():
        matters = {
            "kan_lr_scale": case.spline != "none",
            "head_lr_scale": value != 1,
            "best_by": value != "accuracy",
        }
        if matters.get(name, True):
            print(f"{flag_of(name)} {value}  ({reason})")
    return chosen


def try_batch_sizes(
    options: Options, model: VisionTransformer, device, train_images: int, world: World
) -> Chosen:
    """Returns the largest batch that fits for `--batch-size auto`, the same in all processes."""
    model.grad_checkpointing = options.grad_checkpointing
    spare = weight_of(model) * ((options.ema > 0) + (options.teacher is not None))
    step = trial_step(model, device, amp_dtype(options.amp, device), options.opt, spare)
    processes = world.size * options.accum_steps
    found, why = find_batch_size(step, device, train_images, processes, world.local_size)
    found = world.lowest(found)
    print(f"--batch-size {found}  ({why})")
    return {"batch_size": (found, why)}


def describe(model, trainable: list[str], device: torch.device, amp, world: World) -> str:
    """Returns a line on the model: name, parameters in all and training, blocks, device, type."""
    count = {name: p.numel() for name, p in model.named_parameters()}
    sizes = model.sizes
    form = " ".join(f"{flag_of(key)} {value}" for key, value in form_of(model.config).items())
    blocks = (
        ""
        if sizes.mlp == "mlp"
        else f", {sizes.mlp} in {len(sizes.kan_numbers)} of {sizes.depth} blocks ({form})"
    )
    if sizes.adapt != "none":
        rank = f" of rank {sizes.lora_rank} at {sizes.lora_at}" * (sizes.adapt == "lora")
        blocks += f", {sizes.adapt}{rank} in all blocks"
    where = str(device) if world.size == 1 else f"{world.size} processes, {device.type}"
    return (
        f"{model.name}: {sum(count.values()):,} parameters, "
        f"{sum(count[name] for name in trainable):,} of them train{blocks}; "
        f"{where}, {str(amp or torch.float32).removeprefix('torch.')}"
    )
