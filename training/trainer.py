"""One run while it trains: epochs, validation, checkpoints, interruption and resume.

A `Trainer` is built from plain parts (arguments, data, model) and holds nothing that its checkpoint
does not: `state()` is everything that a run needs to go on, `restore()` puts it back bit for bit.
"""

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from formats.checkpoints import checkpoint_facts, load_checkpoint, save_checkpoint
from imaging.pixel_cache import SHARE
from imaging.preprocess import Preprocess, eval_transform, train_transform
from imaging.splitting import DataSplit
from my_dataset import Batch, Failed, MyDataSet, PhotoLoader, SeededSampler, in_step
from parallel.sharding import load_model_state, load_optimizer_state, replicate, shard, whole
from parallel.world import ALONE, World
from system import devices
from system.devices import rng_state, set_rng_state
from system.terminal import printable
from training import feature_cache, loss, optim
from training.compiling import compile_blocks
from training.progress import Interrupt, Progress, Timer
from training.run_folder import RunLog
from utils import EpochResult, Meter, Stepper, evaluate, pooled, train_one_epoch
from vit_model import VisionTransformer


@dataclass
class Trainer:
    """Trains `model` on `data` as `args` says and writes checkpoints and metrics into `folder`.

    args: the flags of train.py with every chosen value filled in.
    trainable: names of the parameters that train; the others never change.
    teacher: a recipe.Teacher or None.
    world: the processes that train together; all call the same methods, the first alone writes.
    """

    args: argparse.Namespace
    folder: Path
    device: torch.device
    data: DataSplit
    model: VisionTransformer
    preprocess: Preprocess
    trainable: list[str]
    teacher: torch.nn.Module | None = None
    world: World = ALONE

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
        self.ema = optim.create_ema(model, args.ema) if args.ema else None
        self.sharded = args.fsdp and self.world.size > 1
        if self.sharded:
            for copy in {model, self.evaluated}:
                shard(copy, self.device, self.world)
        steps_per_epoch = math.ceil(self.batches_per_epoch / args.accum_steps)
        groups = optim.param_groups(
            model,
            args.lr,
            args.weight_decay,
            args.layer_decay,
            args.kan_lr_scale,
            args.decay_all,
        )
        optimizer = optim.create_optimizer(args.opt, groups)
        scheduler = optim.create_lr_scheduler(
            optimizer,
            args.epochs * steps_per_epoch,
            round(args.warmup_epochs * steps_per_epoch),
            args.lrf,
        )
        self.amp_dtype = devices.amp_dtype(args.amp, self.device)
        scaler = torch.amp.GradScaler(self.device.type, enabled=self.amp_dtype == torch.float16)
        self.stepper = Stepper(
            optimizer, scheduler, scaler, self.amp_dtype, args.clip_grad, self.ema
        )
        self.criterion = self._criterion()

    def _loaders(self) -> tuple[PhotoLoader, PhotoLoader]:
        args, world, preprocess = self.args, self.world, self.preprocess
        train = train_transform(preprocess, args.aug, args.reprob, as_bytes=True)
        val = eval_transform(preprocess, as_bytes=True)

        def loader(samples, transform, shuffle: bool) -> PhotoLoader:
            dataset = MyDataSet(*samples, transform)
            order = SeededSampler(len(dataset), args.seed, shuffle, world.rank, world.size)
            return PhotoLoader(
                dataset, args.batch_size, order, args.workers, self.device, preprocess
            )

        return loader(self.data.train, train, True), loader(self.data.val, val, False)

    def _criterion(self) -> loss.Criterion:
        args, classes = self.args, len(self.data.classes)
        balanced = args.class_weights == "balanced"
        return loss.Criterion(
            classes,
            label_smoothing=args.label_smoothing,
            class_weights=loss.class_weights(self.data.train.labels, classes) if balanced else None,
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
        metrics = self.history[-1] if self.history else dict(self.best)
        return {"model": self._whole(self.evaluated.state_dict())} | checkpoint_facts(
            self.model, self.data.classes, self.preprocess, len(self.history), metrics
        )

    def state(self) -> dict:
        """Returns `checkpoint()` and all that a resumed run needs, on however many processes."""
        stepper = self.stepper
        meter, failed = pooled(self.meter or Meter(self.device), self.failed, self.world)
        state = self.checkpoint() | {
            "optimizer": self._whole(stepper.optimizer.state_dict()),
            "scheduler": stepper.scheduler.state_dict(),
            "scaler": stepper.scaler.state_dict(),
            "ema": self._whole(self.ema.state_dict()) if self.ema is not None else None,
            "rng": rng_state(),
            "loader": {
                "epoch": self.epoch,
                "batches_done": self.batches_done,
                "processes": self.world.size,
                "sums": meter.sums.cpu(),
                "failed": [list(failure) for failure in failed],
            },
            "args": dict(vars(self.args)),
            "trainable": self.trainable,
            "history": self.history,
            "best": self.best,
            "advised": self.advised,
        }
        if self.ema is not None:
            state["raw_model"] = self._whole(self.model.state_dict())
        return state

    def _whole(self, state: dict) -> dict:
        return whole(state, keep=self.world.first) if self.sharded else state

    def restore(self, state: dict) -> None:
        """Puts the run back to where `state()` was taken."""
        load_model_state(self.model, state.get("raw_model", state["model"]))
        if self.ema is not None:
            load_model_state(self.ema, state["ema"])
        load_optimizer_state(self.stepper.optimizer, state["optimizer"])
        self.stepper.scheduler.load_state_dict(state["scheduler"])
        self.stepper.scaler.load_state_dict(state["scaler"])
        set_rng_state(state["rng"])
        self.history, self.best = state["history"], state["best"]
        self.advised = state["advised"]
        loader = state["loader"]
        self.epoch, self.batches_done = loader["epoch"], loader["batches_done"]
        self.meter = Meter(self.device)
        if self.world.first:  # they are the sums over all processes
            self.meter.sums.copy_(loader["sums"])
            self.failed = [Failed(*failure) for failure in loader["failed"]]

    def save(self) -> None:
        self.write("last.pth", self.state())

    def write(self, name: str, checkpoint: dict) -> None:
        if self.world.first:
            save_checkpoint(self.folder / name, checkpoint)

    # --- epochs ---------------------------------------------------------------------------------

    def fit(self, log: RunLog | None) -> int:
        """Trains to the last epoch; returns 0, or the number of the signal that stopped it.

        log: None in all processes but the first.
        """
        args = self.args
        self.skip_frozen()
        self.keep_decoded()
        self.trained = self.forwarding(self.model)
        if args.compile:
            self.compile()
        if not self.sharded:
            self.trained = replicate(self.trained, self.device, self.world)
        if args.epochs == 0:
            self.evaluate_start()
        with Interrupt(self.world) as interrupt:
            while self.epoch < args.epochs and not self.out_of_patience():
                timer = Timer()
                trained = self.train_epoch(interrupt, timer)
                if trained is None:
                    return interrupt.signal
                seconds = timer.seconds
                row = self.finish_epoch(trained, seconds, timer.waited)
                # The state last: a run killed before it goes over this epoch again and writes the
                # rest anew, one killed after it has left nothing out.
                if log is not None:
                    log.epoch()
                notes = self.notes(row)
                self.save()
                print(self.line(row), *notes, sep="\n", flush=True)
                if interrupt.agreed() and self.epoch < args.epochs:
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
        if self.sharded:
            print("--fsdp: the frozen layers run in every epoch; without it they run once")
            return
        if random and args.cache_views < 2:
            print(
                f"--aug {args.aug}: the frozen layers run in every epoch; with --cache-views N "
                f"they run for N views of each photo, once"
            )
            return
        views = args.cache_views if random else 1
        photos = views * len(self.train_loader.sampler) + len(self.val_loader.sampler)
        progress = Progress("frozen layers, once", photos)
        fill = partial(
            feature_cache.fill,
            self.model,
            skip,
            device=self.device,
            folder=self.folder,
            world=self.world,
            progress=progress.bar.update,
        )
        # Validation keeps full precision, as prediction has it.
        self.train_loader = fill(self.train_loader, views=views, amp_dtype=self.amp_dtype)
        self.val_loader = fill(self.val_loader, views=1, amp_dtype=None)
        progress.close()
        self.skip = skip

    def compile(self) -> None:
        """Compiles the blocks, where there are some to train."""
        if self.skip > len(self.model.blocks):
            print("--compile: ignored, for the blocks have run and heads alone train")
            return
        images = torch.zeros(self.args.batch_size, *self.input_shape, device=self.device)
        compile_blocks(self.model, self.trained, images, self.stepper.autocast(self.device))

    def keep_decoded(self) -> None:
        """Keeps each photo's pixels once decoded, where photos are needed more than once."""
        if self.skip or self.args.epochs - self.epoch < 2:
            return
        lines = []
        for loader in (self.train_loader, self.val_loader):
            line = loader.dataset.keep_decoded(
                self.args.cache_images,
                self.folder,
                share=SHARE / self.world.local_size,
                threads=max(1, self.args.workers),
            )
            lines.append(line)
        print(f"decoded photos: for training {lines[0]}; for validation {lines[1]}")

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
            math.ceil(len(self.data.train.paths) / self.world.size),
            self.meter.samples if self.meter else 0,
        )

        def after_step(done: int, meter: Meter) -> bool:
            progress.update(meter, self.stepper.lr)
            steps = math.ceil(done / args.accum_steps)
            due = args.save_steps and steps % args.save_steps == 0
            stop = bool(interrupt.agreed())
            if (stop or due) and done < self.batches_per_epoch:
                self.batches_done, self.meter = done, meter
                self.save()
            return stop

        self.meter = self.meter or Meter(self.device)
        try:
            return train_one_epoch(
                self.trained,
                self.stepper,
                timer.over(self.in_step(self.train_loader, self.batches_per_epoch - first)),
                self.device,
                self.loss,
                num_batches=self.batches_per_epoch,
                accum_steps=args.accum_steps,
                meter=self.meter,
                failed=self.failed,
                first_batch=first,
                after_step=after_step,
                world=self.world,
            )
        except FloatingPointError as error:
            raise ValueError(self.advice_on_nan(error)) from None
        finally:
            progress.close()

    @property
    def batches_per_epoch(self) -> int:
        return self.batches_over(len(self.data.train.paths))

    def batches_over(self, photos: int) -> int:
        return math.ceil(photos / (self.args.batch_size * self.world.size))

    @property
    def input_shape(self) -> tuple[int, ...]:
        size = self.preprocess.img_size
        return tuple(self.train_loader.features.shape[2:]) if self.skip else (3, size, size)

    def in_step(self, loader, batches: int) -> Iterator[Batch]:
        return in_step(loader, batches, self.input_shape, self.world)

    def loss(self, model, images: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Returns `criterion`'s; what the model draws depends on step and process alone."""
        torch.manual_seed(hash((self.args.seed, self.epoch, step, self.world.rank)))
        return self.criterion(model, images, labels, step)

    def finish_epoch(self, trained: EpochResult, seconds: float, waited: float) -> dict:
        """Validates, then writes best.pth if it is; returns the epoch's row of metrics."""
        result, _, _ = self.validate()
        if not math.isfinite(result.loss):  # the last step can spoil what no training loss has seen
            error = FloatingPointError(f"the validation loss became {result.loss} at the end")
            raise ValueError(self.advice_on_nan(error))
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
        return row

    def validate(self) -> tuple[EpochResult, Tensor, Tensor]:
        """Evaluates on the validation photos: see utils.evaluate."""
        self.val_loader.sampler.set_epoch(0)
        progress = Progress("validation", len(self.val_loader.sampler))
        try:
            return evaluate(
                self.forwarding(self.evaluated),
                self.in_step(self.val_loader, self.batches_over(len(self.data.val.paths))),
                self.device,
                progress.update,
                self.world,
            )
        finally:
            progress.close()

    def validate_best(self) -> tuple[EpochResult, Tensor, Tensor]:
        """Evaluates best.pth as it lies on disk: see utils.evaluate."""
        self.world.wait()  # the first process has written it
        load_model_state(self.evaluated, load_checkpoint(self.folder / "best.pth")["model"])
        return self.validate()

    def keep_best(self, row: dict) -> None:
        """Writes best.pth when the epoch is the best so far, by accuracy, then by loss."""
        key = (row["val_acc"], -row["val_loss"])
        if not self.best or key > (self.best["val_acc"], -self.best["val_loss"]):
            self.best = dict(row)
            self.write("best.pth", self.checkpoint())

    def evaluate_start(self) -> None:
        """Evaluates the untrained model and writes it as best.pth and last.pth (--epochs 0)."""
        result, _, _ = self.validate()
        self.best = {"epoch": 0, "val_loss": result.loss, "val_acc": result.accuracy}
        self.write("best.pth", self.checkpoint())
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
            "gradients are too large for float16, so that steps are left out: try --amp bf16 or "
            "--amp off": self.stepper.scaler.get_scale() < 1,
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
