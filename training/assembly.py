"""The parts of a `Trainer`, made from a `Run`: loaders, optimiser, loss, what is computed once."""

import math
import time
from functools import partial

import torch
from torch import nn

from imaging.pixel_cache import SHARE
from imaging.preprocess import eval_transform, train_transform
from imaging.splitting import Samples
from my_dataset import MyDataSet, PhotoLoader, SeededSampler
from parallel.sharding import load_model_state, load_optimizer_state, replicate, shard
from system.devices import set_rng_state
from training import feature_cache
from training.compiling import compile_blocks
from training.feature_cache import CachedLoader, rest_of
from training.loss import Criterion, class_weights
from training.optim import (
    CurveRates,
    create_ema,
    create_lr_scheduler,
    create_optimizer,
    param_groups,
)
from training.progress import Progress
from training.resuming import check_alike
from training.setup import Run
from training.trainer import Trainer
from utils import Stepper

Loader = PhotoLoader | CachedLoader
SIDES = "training", "validation"


def prepare(run: Run) -> Stepper:
    """Returns what steps the model of a run, both as they were saved.

    Raises ValueError, naming last.pth, where what was saved does not fit the model.
    """
    prepare_model(run)
    stepper = make_stepper(run)
    if run.state is not None:
        restore(run, stepper)
    return stepper


def assemble(run: Run, stepper: Stepper) -> Trainer:
    """Returns what trains a run from where it stands, once what is computed once has been."""
    loaders, skip = cache_frozen(run, *photo_loaders(run))
    if not skip and not run.options.folds:  # whose photos are first wanted by the folds
        keep_decoded(run, *loaders)
    trained = make_trained(run, loaders[0], stepper, skip)
    return Trainer(run, *loaders, stepper, make_criterion(run), trained, skip)


def for_fold(
    whole: Trainer, fold: Run, stepper: Stepper, trained: list[int], judged: list[int]
) -> Trainer:
    """Returns what trains a fold: on the features of the whole run, where these are kept.

    trained, judged: indices of the fold's photos among those of the whole run.
    """
    if whole.skip:
        loaders = (
            whole.train_loader.part(trained, sampler(fold, len(trained), shuffle=True)),
            whole.val_loader.part(judged, sampler(fold, len(judged), shuffle=False)),
        )
    else:
        loaders = photo_loaders(fold)
        keep_decoded(fold, *loaders)
    model = make_trained(fold, loaders[0], stepper, whole.skip)
    return Trainer(fold, *loaders, stepper, make_criterion(fold), model, whole.skip)


def prepare_model(run: Run) -> None:
    """Puts the model on its device, with what trains and nothing else to be trained."""
    if run.options.fsdp and not run.sharded:
        print("--fsdp: no effect with one process; torchrun starts several")
    model = run.model.to(run.device)
    model.grad_checkpointing = run.options.grad_checkpointing
    model.distill_outputs = run.teacher is not None
    trainable = set(run.trainable)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trainable)


def photo_loaders(run: Run) -> tuple[PhotoLoader, PhotoLoader]:
    """Returns the loaders of training and of validation photos.

    With --folds both are of all photos, for each is trained on and judged: `for_fold` has parts.
    """
    options = run.options
    train = train_transform(run.preprocess, options.aug, options.reprob, as_bytes=True)
    judged = run.data.train if options.folds else run.data.val
    return photo_loader(run, run.data.train, train, shuffle=True), judging_loader(run, judged)


def judging_loader(run: Run, samples: Samples) -> PhotoLoader:
    """Returns the loader of photos to be judged."""
    transform = eval_transform(run.preprocess, as_bytes=True)
    return photo_loader(run, samples, transform, shuffle=False)


def photo_loader(run: Run, samples: Samples, transform, *, shuffle: bool) -> PhotoLoader:
    dataset, options = MyDataSet(*samples, transform), run.options
    order = sampler(run, len(dataset), shuffle=shuffle)
    rest = options.workers, run.device, run.preprocess
    return PhotoLoader(dataset, options.batch_size, order, *rest)


def sampler(run: Run, photos: int, *, shuffle: bool) -> SeededSampler:
    return SeededSampler(photos, run.options.seed, shuffle, run.world.rank, run.world.size)


def make_stepper(run: Run) -> Stepper:
    """Returns optimiser, schedule, scaler and average; cuts the model into shards with --fsdp."""
    options, model = run.options, run.model
    ema = create_ema(model, options.ema) if options.ema else None
    if run.sharded:
        for copy in {model, ema.module if ema else model}:
            shard(copy, run.device, run.world)
    rates = options.lr, options.weight_decay, options.layer_decay, options.kan_lr_scale
    head_scale = options.head_lr_scale or 1.0  # None in a run begun before there was one
    groups = param_groups(model, *rates, options.decay_all, head_scale)
    optimizer = create_optimizer(options.opt, groups)
    if options.kan_groups is not None:  # None in a run begun before curves had rates of their own
        CurveRates(model, options.opt).watch(optimizer)
    per_epoch = math.ceil(run.batches_per_epoch / options.accum_steps)
    steps, warmup = options.epochs * per_epoch, round(options.warmup_epochs * per_epoch)
    scheduler = create_lr_scheduler(optimizer, steps, warmup, options.lrf)
    scaler = torch.amp.GradScaler(run.device.type, enabled=run.amp_dtype == torch.float16)
    return Stepper(optimizer, scheduler, scaler, run.amp_dtype, options.clip_grad, ema)


def make_criterion(run: Run) -> Criterion:
    options, classes = run.options, len(run.data.classes)
    balanced = options.class_weights == "balanced"
    return Criterion(
        classes,
        label_smoothing=options.label_smoothing,
        class_weights=class_weights(run.data.train.labels, classes) if balanced else None,
        mixup=options.mixup,
        cutmix=options.cutmix,
        seed=options.seed,
        kan_reg=options.kan_reg,
        teacher=run.teacher,
        teacher_weight=options.teacher_weight,
    )


def restore(run: Run, stepper: Stepper) -> None:
    """Puts weights, averages, optimiser and random states back to where they were saved."""
    state = run.state
    try:
        check_alike(state, stepper.optimizer, stepper.scheduler, stepper.scaler)
        load_model_state(run.model, state.get("raw_model", state["model"]))
        if stepper.ema is not None:
            load_model_state(stepper.ema, state["ema"])
        load_optimizer_state(stepper.optimizer, state["optimizer"])
        stepper.scheduler.load_state_dict(state["scheduler"])
        stepper.scaler.load_state_dict(state["scaler"])
        set_rng_state(state["rng"])
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{run.folder / 'last.pth'} cannot be resumed: it {error}") from None


# --- what need not be computed twice ------------------------------------------------------------


def cache_frozen(run: Run, train: Loader, val: Loader) -> tuple[tuple[Loader, Loader], int]:
    """Runs the layers before everything that trains once; returns loaders of what comes out.

    And how many layers that are: 0, and the loaders as they were, where every epoch runs them,
    with a line on what would spare it that.
    """
    options, once = run.options, partial(feature_cache.run_once, run.model, run.trainable)
    if skip := once(options, run.world):
        if options.drop_path:
            print("--drop-path: no effect on layers that run once")
        views = options.cache_views if options.random else 1
        return fill_both(run, train, val, skip, views), skip
    with_views = options.settled(cache_views=2)
    if once(with_views, run.world):
        flag = f"--aug {options.aug}" if options.aug != "none" else f"--reprob {options.reprob:g}"
        print(
            f"{flag}: the frozen layers run in every epoch; with --cache-views N they run for N "
            f"views of each photo, once"
        )
    elif once(with_views.settled(fsdp=False), run.world):
        print("--fsdp: the frozen layers run in every epoch; without it they can run once")
    return (train, val), 0


def fill_both(
    run: Run, train: PhotoLoader, val: PhotoLoader, skip: int, views: int
) -> tuple[CachedLoader, CachedLoader]:
    """Returns loaders of what comes out of the first `skip` layers, for `views` of each photo."""
    # Photos of folds are trained on and judged: one look at each serves both, if it is one view.
    once = bool(run.options.folds) and views == 1
    photos = views * len(train.sampler) + (0 if once else len(val.sampler))
    progress = Progress("frozen layers, once", photos)
    place = {"device": run.device, "folder": run.folder, "world": run.world}
    place["progress"] = progress.bar.update
    kind = None if once else run.amp_dtype
    ranked = run.ranked
    if ranked and views == 1 and skip > len(run.model.blocks) and ranked.serve(run):
        trained = ranked.features.ordered(train.batch_size, train.sampler)
        place["progress"](len(train.sampler))
    else:
        start = time.perf_counter()
        trained = feature_cache.fill(run.model, skip, train, views=views, amp_dtype=kind, **place)
        run.photo_seconds = (time.perf_counter() - start) / (views * len(train.sampler))
    # Validation keeps full precision, as prediction has it.
    judged = trained
    if not once:
        judged = feature_cache.fill(run.model, skip, val, views=1, amp_dtype=None, **place)
    progress.close()
    return trained, judged


def keep_decoded(run: Run, *loaders: PhotoLoader) -> None:
    """Keeps each photo's pixels once decoded, where photos are needed more than once.

    loaders: of the photos for training, and of those for validation if there are any.
    """
    options = run.options
    if options.epochs - run.position.epoch < 2:
        return
    share, threads = SHARE / run.world.local_size, max(1, options.workers)
    lines = [
        loader.dataset.keep_decoded(options.cache_images, run.folder, share=share, threads=threads)
        for loader in loaders
    ]
    told = (f"for {side} {line}" for side, line in zip(SIDES, lines, strict=False))
    print(f"decoded photos: {'; '.join(told)}")


def make_trained(run: Run, loader: Loader, stepper: Stepper, skip: int) -> nn.Module:
    """Returns what the loop trains: the model or what follows its frozen layers, on all devices."""
    trained = rest_of(run.model, skip)
    if run.options.compile:
        compile_trained(run, trained, loader, stepper, skip)
    return trained if run.sharded else replicate(trained, run.device, run.world)


def compile_trained(run: Run, trained: nn.Module, loader, stepper: Stepper, skip: int) -> None:
    """Compiles the blocks, where there are some to train."""
    if skip > len(run.model.blocks):
        print("--compile: ignored, for the blocks have run and heads alone train")
        return
    images = torch.zeros(run.options.batch_size, *loader.item_shape, device=run.device)
    compile_blocks(run.model, trained, images, stepper.autocast(run.device))
