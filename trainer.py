"""One run while it trains: epochs, validation, checkpoints, interruption and resume.

A `Trainer` is built from plain parts (arguments, data, model) and holds nothing that its checkpoint
does not: `state()` is everything that a run needs to go on, `restore()` puts it back bit for bit.
"""

import argparse
import math
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

import feature_cache
import recipe
from my_dataset import (
    DataSplit,
    Failed,
    MyDataSet,
    Preprocess,
    SeededSampler,
    eval_transform,
    printable,
    train_transform,
)
from run_dir import RunLog
from utils import (
    CHECKPOINT_VERSION,
    EpochResult,
    Meter,
    Stepper,
    autocast,
    evaluate,
    load_checkpoint,
    rng_state,
    save_checkpoint,
    set_rng_state,
    train_one_epoch,
)
from vit_model import VisionTransformer


class Interrupt:
    """Turns the first Ctrl-C or SIGTERM into `signal`, a number that the loop looks at.

    The step under way ends and is saved; a second Ctrl-C ends the program at once.
    """

    def __init__(self) -> None:
        self.signal = 0

    def __enter__(self) -> "Interrupt":
        self._before = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame) -> None:
        if self.signal:
            raise KeyboardInterrupt
        self.signal = number
        print("\nfinishing the step, then saving; Ctrl-C again ends at once", file=sys.stderr)


class Progress:
    """The progress bar of one pass: photos, loss, accuracy, learning rate, speed, time left."""

    def __init__(self, title: str, total: int, start: int = 0) -> None:
        self.bar = tqdm(
            desc=title,
            total=total,
            initial=start,
            unit="img",
            leave=False,
            dynamic_ncols=True,
            disable=None,  # not a terminal, no bar: logs keep clean lines
        )
        self.shown = 0.0

    def update(self, meter: Meter, lr: float | None = None) -> None:
        # Reading the meter waits for the device: a few times a second is enough.
        if self.bar.disable or time.monotonic() - self.shown < 0.2:
            return
        self.shown = time.monotonic()
        self.bar.set_postfix_str(
            f"loss {meter.loss:.3f}, acc {meter.accuracy:.3f}" + (f", lr {lr:.2g}" if lr else ""),
            refresh=False,
        )
        self.bar.update(meter.samples - self.bar.n)

    def close(self) -> None:
        self.bar.close()


@dataclass
class Timer:
    """Seconds of a pass, and how many of them it waited for data."""

    waited: float = 0.0
    start: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.start

    def over(self, batches: Iterator) -> Iterator:
        batches = iter(batches)
        while True:
            before = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - before
            if batch is None:
                return
            yield batch


@dataclass
class Trainer:
    """Trains `model` on `data` as `args` says and writes checkpoints and metrics into `folder`.

    args: the flags of train.py with every chosen value filled in.
    trainable: names of the parameters that train; the others never change.
    teacher: a recipe.Teacher or None.
    """

    args: argparse.Namespace
    folder: Path
    device: torch.device
    data: DataSplit
    model: VisionTransformer
    preprocess: Preprocess
    trainable: list[str]
    teacher: torch.nn.Module | None = None

    history: list[dict] = field(default_factory=list)
    best: dict = field(default_factory=dict)
    epoch: int = 0  # the epoch under way, or the next one
    # Batches of the epoch that were done before a resume, and what had been counted until then.
    batches_done: int = 0
    meter: Meter | None = None
    failed: list = field(default_factory=list)
    skip: int = 0  # frozen layers whose output the loaders serve: see feature_cache
    skipped: list = field(default_factory=list)  # photos that could not be read in the last epoch
    advised: list[str] = field(default_factory=list)  # what was said and is not said again

    def __post_init__(self) -> None:
        args, model = self.args, self.model.to(self.device)
        model.grad_checkpointing = args.grad_checkpointing
        model.distill_outputs = self.teacher is not None
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in set(self.trainable))
        self.train_loader, self.val_loader = self._loaders()
        self.steps_per_epoch = math.ceil(len(self.train_loader) / args.accum_steps)
        groups = recipe.param_groups(
            model,
            args.lr,
            args.weight_decay,
            args.layer_decay,
            args.kan_lr_scale,
            args.decay_all,
        )
        optimizer = recipe.create_optimizer(args.opt, groups)
        scheduler = recipe.create_lr_scheduler(
            optimizer,
            args.epochs * self.steps_per_epoch,
            round(args.warmup_epochs * self.steps_per_epoch),
            args.lrf,
        )
        self.amp_dtype = recipe.amp_dtype(args.amp, self.device)
        scaler = torch.amp.GradScaler(self.device.type, enabled=self.amp_dtype == torch.float16)
        self.ema = recipe.create_ema(model, args.ema) if args.ema else None
        self.stepper = Stepper(
            optimizer, scheduler, scaler, self.amp_dtype, args.clip_grad, self.ema
        )
        self.criterion = self._criterion()
        if args.compile:
            compile_model(model, self.preprocess.img_size, self.device, self.amp_dtype)

    def _loaders(self) -> tuple[DataLoader, DataLoader]:
        args, data, preprocess = self.args, self.data, self.preprocess
        train = train_transform(preprocess, args.aug, args.reprob)
        return (
            make_loader(args, data.train, train, shuffle=True),
            make_loader(args, data.val, eval_transform(preprocess), shuffle=False),
        )

    def _criterion(self) -> recipe.Criterion:
        args, classes = self.args, len(self.data.classes)
        balanced = args.class_weights == "balanced"
        return recipe.Criterion(
            classes,
            label_smoothing=args.label_smoothing,
            class_weights=recipe.class_weights(self.data.train.labels, classes)
            if balanced
            else None,
            mixup=args.mixup,
            cutmix=args.cutmix,
            seed=args.seed,
            kan_reg=args.kan_reg,
            teacher=self.teacher,
            teacher_weight=args.teacher_weight,
        )

    @property
    def evaluated(self) -> VisionTransformer:
        """The model that is validated and saved: the average with --ema, else the trained one."""
        return self.ema.module if self.ema is not None else self.model

    # --- checkpoints ----------------------------------------------------------------------------

    def checkpoint(self) -> dict:
        """Returns what predicting needs: weights, sizes, classes, preprocessing, metrics."""
        return {
            "model": self.evaluated.state_dict(),
            "config": self.model.config,
            "classes": self.data.classes,
            "preprocess": self.preprocess.to_dict(),
            "epoch": len(self.history),
            "metrics": self.history[-1] if self.history else dict(self.best),
            "version": CHECKPOINT_VERSION,
        }

    def state(self) -> dict:
        """Returns `checkpoint()` and all that a resumed run needs."""
        stepper, meter = self.stepper, self.meter or Meter()
        state = self.checkpoint() | {
            "optimizer": stepper.optimizer.state_dict(),
            "scheduler": stepper.scheduler.state_dict(),
            "scaler": stepper.scaler.state_dict(),
            "ema": self.ema.state_dict() if self.ema is not None else None,
            "rng": rng_state(),
            "loader": {
                "epoch": self.epoch,
                "batches_done": self.batches_done,
                "sums": meter.sums.cpu(),
                "failed": [list(failure) for failure in self.failed],
            },
            "args": dict(vars(self.args)),
            "trainable": self.trainable,
            "history": self.history,
            "best": self.best,
            "advised": self.advised,
        }
        if self.ema is not None:
            state["raw_model"] = self.model.state_dict()
        return state

    def restore(self, state: dict) -> None:
        """Puts the run back to where `state()` was taken."""
        self.model.load_state_dict(state.get("raw_model", state["model"]))
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.stepper.optimizer.load_state_dict(state["optimizer"])
        self.stepper.scheduler.load_state_dict(state["scheduler"])
        self.stepper.scaler.load_state_dict(state["scaler"])
        set_rng_state(state["rng"])
        self.history, self.best = state["history"], state["best"]
        self.advised = state["advised"]
        loader = state["loader"]
        self.epoch, self.batches_done = loader["epoch"], loader["batches_done"]
        self.meter = Meter(self.device)
        self.meter.sums.copy_(loader["sums"])
        self.failed = [Failed(*failure) for failure in loader["failed"]]

    def save(self) -> None:
        save_checkpoint(self.folder / "last.pth", self.state())

    # --- epochs ---------------------------------------------------------------------------------

    def fit(self, log: RunLog) -> int:
        """Trains to the last epoch; returns 0, or the number of the signal that stopped it."""
        args = self.args
        self.skip_frozen()
        if args.epochs == 0:
            self.evaluate_start()
        with Interrupt() as interrupt:
            while self.epoch < args.epochs and not self.out_of_patience():
                timer = Timer()
                trained = self.train_epoch(interrupt, timer)
                if trained is None:
                    return interrupt.signal
                seconds = timer.seconds
                row = self.finish_epoch(trained, seconds, timer.waited)
                log.epoch()
                print(self.line(row), *self.notes(row), sep="\n", flush=True)
                if interrupt.signal and self.epoch < args.epochs:
                    return interrupt.signal
        return 0

    def skip_frozen(self) -> None:
        """Runs the layers before everything that trains once, and puts their output in the loaders.

        Not where every epoch needs new images: random crops (unless a few views are kept), mixing,
        and a teacher that looks at them.
        """
        args, skip = self.args, feature_cache.plan(self.model, self.trainable)
        random = args.aug != "none" or args.reprob > 0
        if skip < 1 or args.mixup or args.cutmix or self.teacher is not None:
            return
        if random and args.cache_views < 2:
            print(
                f"--aug {args.aug}: the frozen layers run in every epoch; with --cache-views N "
                f"they run for N views of each photo, once"
            )
            return
        views = args.cache_views if random else 1
        photos = views * len(self.data.train.paths) + len(self.data.val.paths)
        progress = Progress("frozen layers, once", photos)
        fill = partial(
            feature_cache.fill,
            self.model,
            skip,
            device=self.device,
            folder=self.folder,
            progress=progress.bar.update,
        )
        # Validation keeps full precision, as prediction has it.
        self.train_loader = fill(self.train_loader, views=views, amp_dtype=self.amp_dtype)
        self.val_loader = fill(self.val_loader, views=1, amp_dtype=None)
        progress.close()
        self.skip = skip

    def forwarding(self, model: VisionTransformer) -> torch.nn.Module:
        """Returns what takes the loaders' batches: the model, or what follows its cached layers."""
        return feature_cache.Tail(model, self.skip) if self.skip else model

    def train_epoch(self, interrupt: Interrupt, timer: Timer) -> EpochResult | None:
        """Trains the epoch under way from `batches_done` on; None when a signal stopped it."""
        args, first = self.args, self.batches_done
        self.criterion.epoch = self.epoch
        self.train_loader.sampler.set_epoch(self.epoch, start=first * args.batch_size)
        progress = Progress(
            f"epoch {self.epoch + 1}/{args.epochs}",
            len(self.data.train.paths),
            self.meter.samples if self.meter else 0,
        )

        def after_step(done: int, meter: Meter) -> bool:
            progress.update(meter, self.stepper.lr)
            steps = math.ceil(done / args.accum_steps)
            due = args.save_steps and steps % args.save_steps == 0
            if (interrupt.signal or due) and done < self.batches_per_epoch:
                self.batches_done, self.meter = done, meter
                self.save()
            return bool(interrupt.signal)

        self.meter = self.meter or Meter(self.device)
        try:
            return train_one_epoch(
                self.forwarding(self.model),
                self.stepper,
                timer.over(self.train_loader),
                self.device,
                self.criterion,
                num_batches=self.batches_per_epoch,
                accum_steps=args.accum_steps,
                meter=self.meter,
                failed=self.failed,
                first_batch=first,
                after_step=after_step,
            )
        except FloatingPointError as error:
            raise ValueError(self.advice_on_nan(error)) from None
        finally:
            progress.close()

    @property
    def batches_per_epoch(self) -> int:
        return math.ceil(len(self.data.train.paths) / self.args.batch_size)

    def finish_epoch(self, trained: EpochResult, seconds: float, waited: float) -> dict:
        """Validates, then writes best.pth and last.pth; returns the epoch's row of metrics."""
        result, _, _ = self.validate()
        row = {
            "epoch": self.epoch + 1,
            "train_loss": trained.loss,
            "train_acc": trained.accuracy,
            "val_loss": result.loss,
            "val_acc": result.accuracy,
            "learning_rate": self.stepper.lr,
            "images_per_second": trained.samples / seconds,
            "seconds": seconds,
            "data_wait": waited / seconds,
            "failed_photos": len(trained.failed) + len(result.failed),
        }
        self.history.append(row)
        self.epoch += 1
        self.batches_done, self.meter, self.failed = 0, None, []
        self.skipped = trained.failed + result.failed
        self.keep_best(row)
        self.save()
        return row

    def validate(self) -> tuple[EpochResult, Tensor, Tensor]:
        """Evaluates on the validation photos: see utils.evaluate."""
        self.val_loader.sampler.set_epoch(0)
        progress = Progress("validation", len(self.data.val.paths))
        try:
            return evaluate(
                self.forwarding(self.evaluated), self.val_loader, self.device, progress.update
            )
        finally:
            progress.close()

    def keep_best(self, row: dict) -> None:
        """Writes best.pth when the epoch is the best so far, by accuracy, then by loss."""
        key = (row["val_acc"], -row["val_loss"])
        if not self.best or key > (self.best["val_acc"], -self.best["val_loss"]):
            self.best = dict(row)
            save_checkpoint(self.folder / "best.pth", self.checkpoint())

    def evaluate_start(self) -> None:
        """Evaluates the untrained model and writes it as best.pth and last.pth (--epochs 0)."""
        result, _, _ = self.validate()
        self.best = {"epoch": 0, "val_loss": result.loss, "val_acc": result.accuracy}
        save_checkpoint(self.folder / "best.pth", self.checkpoint())
        self.save()

    def out_of_patience(self) -> bool:
        since = len(self.history) - self.best.get("epoch", 0)
        return bool(self.args.patience) and since >= self.args.patience

    # --- words ----------------------------------------------------------------------------------

    def line(self, row: dict) -> str:
        best = " *" if self.best["epoch"] == row["epoch"] else ""
        return (
            f"epoch {row['epoch']:>{len(str(self.args.epochs))}}/{self.args.epochs}  "
            f"train loss {row['train_loss']:.4f} acc {row['train_acc']:.4f}  "
            f"val loss {row['val_loss']:.4f} acc {row['val_acc']:.4f}  "
            f"lr {row['learning_rate']:.2e}  {row['images_per_second']:.0f} img/s  "
            f"{row['seconds']:.0f} s{best}"
        )

    def notes(self, row: dict) -> list[str]:
        """Returns a line for each thing to know after this epoch, each once in a run."""
        chance = math.log(len(self.data.classes))
        seen = {
            f"the loss is still at chance ({chance:.2f}) after the first epoch: try another --lr, "
            f"pretrained --weights, or --freeze-layers false": row["epoch"] == 1
            and row["train_loss"] > 0.97 * chance,
            "validation is more accurate than training, which is normal here: training photos are "
            "randomly cropped and harder": self.args.aug != "none"
            and row["val_acc"] > row["train_acc"],
        }
        lines = [line for line, holds in seen.items() if holds]
        lines += [f"{printable(photo.path)} was skipped: {photo.reason}" for photo in self.skipped]
        new = [line for line in lines if line not in self.advised]
        self.advised += new
        return [f"  note: {line}" for line in new]

    def advice_on_nan(self, error: FloatingPointError) -> str:
        last = self.folder / "last.pth"
        kept = f"; the last good state is {last}" if last.exists() else ""
        return (
            f"{error} of epoch {self.epoch + 1}: try a smaller --lr (it was "
            f"{self.args.lr:g}) or --amp off{kept}"
        )


def ignore_signals(_worker: int) -> None:
    """Lets a loader's worker outlive Ctrl-C and SIGTERM to the process group: the run ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def make_loader(args, samples, transform, shuffle: bool) -> DataLoader:
    """Returns a loader whose order and augmentation depend on (seed, epoch, photo) alone."""
    dataset = MyDataSet(*samples, transform)
    return DataLoader(
        dataset,
        args.batch_size,
        sampler=SeededSampler(len(dataset), args.seed, shuffle),
        num_workers=args.workers,
        collate_fn=MyDataSet.collate_fn,
        persistent_workers=args.workers > 0,
        pin_memory=args.device.startswith("cuda"),
        worker_init_fn=ignore_signals,
        # A generator of its own: drawing the workers' seed must not move the model's.
        generator=torch.Generator().manual_seed(args.seed),
    )


def compile_model(model: VisionTransformer, img_size: int, device, amp_dtype) -> None:
    """Compiles `model` in place; a compiler that fails costs one line of warning, not the run."""
    model.compile()
    try:
        with torch.no_grad(), autocast(device, amp_dtype):
            model(torch.zeros(2, model.sizes.in_chans, img_size, img_size, device=device))
    except Exception as error:  # whatever a missing compiler or an unsupported machine raises
        model._compiled_call_impl = None
        first_line = str(error).strip().splitlines()[:1]
        print(
            f"warning: --compile failed, going on without: {' '.join(first_line)}", file=sys.stderr
        )


def load_state(folder: Path) -> dict:
    """Returns the state in a run's last.pth; raises ValueError where it is not a run's."""
    state = load_checkpoint(folder / "last.pth")
    missing = {"optimizer", "rng", "loader", "args", "trainable"} - set(state)
    if missing:
        raise ValueError(
            f"{folder / 'last.pth'} cannot be resumed: it lacks {', '.join(sorted(missing))}"
        )
    return state
