"""One run while it trains: epochs, validation, checkpoints, interruption.

`assembly.assemble` builds a `Trainer`, which holds nothing that its checkpoint does not: `state()`
is everything that a run needs to go on bit for bit.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from formats.adapter_file import ADAPTER, part_of, save_adapter
from formats.checkpoints import checkpoint_facts, load_checkpoint, save_checkpoint
from imaging.grouping import NONE
from my_dataset import Batch, PhotoLoader, in_step
from parallel.sharding import load_model_state, whole
from reporting.metrics import balanced_accuracy
from system.devices import rng_state
from training import advice
from training.feature_cache import CachedLoader, rest_of
from training.loss import Criterion
from training.position import Position
from training.progress import Interrupt, Progress, Timer
from training.run_folder import RunLog
from training.setup import Run
from utils import EpochResult, Meter, Stepper, evaluate, train_one_epoch
from vit_model import VisionTransformer


@dataclass
class Trainer:
    """Trains a run's model and writes checkpoints and metrics into its folder.

    trained: what takes the loaders' batches in training: the model, or what follows its first
        `skip` layers, whose output the loaders serve (see `feature_cache`).
    """

    run: Run
    train_loader: PhotoLoader | CachedLoader
    val_loader: PhotoLoader | CachedLoader
    stepper: Stepper
    criterion: Criterion
    trained: nn.Module
    skip: int = 0

    @property
    def position(self) -> Position:
        return self.run.position

    @property
    def epoch(self) -> int:
        return self.position.epoch

    @property
    def evaluated(self) -> VisionTransformer:
        """The model that is validated and saved: the average with --ema, else the trained one."""
        ema = self.stepper.ema
        return self.run.model if ema is None else ema.module

    # --- checkpoints ----------------------------------------------------------------------------

    def checkpoint(self) -> dict:
        """Returns what predicting needs: weights, sizes, classes, preprocessing, metrics."""
        run, history = self.run, self.position.history
        chosen = dict(run.data.choice)
        group_by = chosen.pop("group_by", NONE)
        metrics = (history[-1] if history else self.position.best) | chosen
        return {
            "group_by": group_by,
            "model": self._whole(self.evaluated.state_dict()),
        } | checkpoint_facts(
            run.model,
            run.data.classes,
            run.preprocess,
            len(history),
            metrics,
            trained_on=run.trained_on,
        )

    def state(self) -> dict:
        """Returns `checkpoint()` and all that a resumed run needs, on however many processes."""
        run, stepper = self.run, self.stepper
        state = self.checkpoint() | {
            "optimizer": self._whole(stepper.optimizer.state_dict()),
            "scheduler": stepper.scheduler.state_dict(),
            "scaler": stepper.scaler.state_dict(),
            "ema": None,
            "rng": rng_state(),
            "args": run.settings,
            "trainable": run.trainable,
        }
        state |= self.position.state(run.device, run.world)
        if stepper.ema is not None:
            state["ema"] = self._whole(stepper.ema.state_dict())
            state["raw_model"] = self._whole(run.model.state_dict())
        if run.backbone:
            state["backbone"] = run.backbone
            for part in {"model", "raw_model", "ema"} & state.keys():
                state[part] = state[part] and part_of(state[part], run.frozen)
        return state

    def _whole(self, state: dict) -> dict:
        return whole(state, keep=self.run.world.first) if self.run.sharded else state

    def save(self) -> None:
        self.write("last.pth", self.state())

    def save_best(self, checkpoint: dict) -> None:
        """Writes best.pth, and with --save-adapter what was trained of it."""
        run = self.run
        self.write("best.pth", checkpoint)
        if run.backbone and run.world.first:
            part = part_of(checkpoint["model"], run.frozen)
            facts = {key: value for key, value in checkpoint.items() if key != "model"}
            save_adapter(run.folder / ADAPTER, part, facts, run.backbone)

    def write(self, name: str, checkpoint: dict) -> None:
        if self.run.world.first:
            save_checkpoint(self.run.folder / name, checkpoint)

    # --- epochs ---------------------------------------------------------------------------------

    def fit(self, log: RunLog | None) -> int:
        """Trains to the last epoch; returns 0, or the number of the signal that came meanwhile.

        `run.over()` says whether it stopped the run, or came when the last epoch was under way.
        log: None in all processes but the first.
        """
        if self.run.options.epochs == 0 and not self.position.best:
            self.evaluate_start()
        with Interrupt(self.run.world) as interrupt:
            while not self.run.over():
                if not self.run_epoch(interrupt, log):
                    return interrupt.signal
                if interrupt.agreed():
                    return interrupt.signal
        return 0

    def run_epoch(self, interrupt: Interrupt, log: RunLog | None) -> bool:
        """Trains, validates and saves the epoch under way; false where a signal stopped it."""
        counted = self.position.meter.samples if self.position.meter else 0
        timer = Timer(photos_before=sum(self.run.world.numbers(counted)))
        trained = self.train_epoch(interrupt, timer)
        if trained is None:
            return False
        row, skipped = self.finish_epoch(trained, timer)
        # The state last: a run killed before it goes over this epoch again and writes the rest
        # anew, one killed after it has left nothing out.
        if log is not None:
            log.epoch()
        notes = advice.notes(self.run, row, skipped, self.stepper.scaler.get_scale())
        self.save()
        print(advice.line(self.run, row), *notes, sep="\n", flush=True)
        return True

    def train_epoch(self, interrupt: Interrupt, timer: Timer) -> EpochResult | None:
        """Trains the epoch under way from `batches_done` on; None when a signal stopped it."""
        run, position, first = self.run, self.position, self.position.batches_done
        self.criterion.epoch = position.epoch
        self.train_loader.sampler.set_epoch(position.epoch, first * run.options.batch_size)
        position.meter = position.meter or Meter(run.device)
        progress = self.progress()
        batches = self.in_step(self.train_loader, run.batches_per_epoch - first)
        try:
            return train_one_epoch(
                self.trained,
                self.stepper,
                timer.over(batches),
                run.device,
                self.loss,
                num_batches=run.batches_per_epoch,
                accum_steps=run.options.accum_steps,
                meter=position.meter,
                failed=position.failed,
                first_batch=first,
                after_step=self.after_step(interrupt, progress),
                world=run.world,
            )
        except FloatingPointError as error:
            raise ValueError(advice.on_nan(run, error)) from None
        finally:
            progress.close()

    def progress(self) -> Progress:
        photos, position = len(self.run.data.train.paths), self.position
        title = f"epoch {position.epoch + 1}/{self.run.epochs}"
        return Progress(title, math.ceil(photos / self.run.world.size), position.meter.samples)

    def after_step(self, interrupt: Interrupt, progress: Progress):
        """Returns what is done after each update: it saves where that is due or a signal came."""
        options, position = self.run.options, self.position

        def done_with(done: int, meter: Meter) -> bool:
            progress.update(meter, self.stepper.lr)
            steps = math.ceil(done / options.accum_steps)
            due = options.save_steps and steps % options.save_steps == 0
            stop = bool(interrupt.agreed())
            if (stop or due) and done < self.run.batches_per_epoch:
                position.batches_done, position.meter = done, meter
                self.save()
            return stop

        return done_with

    def in_step(self, loader: PhotoLoader | CachedLoader, batches: int) -> Iterator[Batch]:
        return in_step(loader, batches, loader.item_shape, self.run.world)

    def loss(self, model, images: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Returns `criterion`'s; what the model draws depends on step and process alone."""
        seed, rank = self.run.options.seed, self.run.world.rank
        torch.manual_seed(hash((seed, self.epoch, step, rank)))
        return self.criterion(model, images, labels, step)

    def finish_epoch(self, trained: EpochResult, timer: Timer) -> tuple[dict, list]:
        """Validates, then writes best.pth if it is; returns the metrics and the failed photos."""
        seconds = timer.seconds
        found, failed = self.validation_metrics() if self.run.data.val.paths else ({}, [])
        loss = found.get("val_loss", 0.0)
        if not math.isfinite(loss):  # the last step can spoil what no training loss has seen
            error = FloatingPointError(f"the validation loss became {loss} at the end")
            raise ValueError(advice.on_nan(self.run, error))
        row = {
            "epoch": self.epoch + 1,
            "train_loss": trained.loss,
            "train_acc": trained.accuracy,
            **{name: found[name] for name in ("val_loss", "val_acc") if name in found},
            "learning_rate": self.stepper.lr,
            "images_per_second": (trained.samples - timer.photos_before) / seconds,
            "seconds": seconds,
            "data_wait": timer.waited / seconds,
            "failed_photos": len(trained.failed) + len(failed),
            **found,
        }
        self.position.begin_next(row)
        self.keep_best(row)
        return row, trained.failed + failed

    def validation_metrics(self) -> tuple[dict, list]:
        """Returns what the validation photos tell of the model, and those that failed."""
        result, probabilities, indices = self.validate()
        found = {"val_loss": result.loss, "val_acc": result.accuracy}
        labels = torch.tensor(self.run.data.val.labels)[indices]
        if self.run.options.best_by == "balanced":
            found["val_balanced"] = balanced_accuracy(labels, probabilities.argmax(1))
        if self.run.options.best_by == "probability":
            found["val_probability"] = (
                probabilities.gather(1, labels[:, None]).double().mean().item()
            )
        return found, result.failed

    def validate(self) -> tuple[EpochResult, Tensor, Tensor]:
        """Evaluates on the validation photos: see utils.evaluate."""
        return self.judge(self.val_loader, rest_of(self.evaluated, self.skip), "validation")

    def judge(
        self, loader: PhotoLoader | CachedLoader, model: nn.Module, title: str
    ) -> tuple[EpochResult, Tensor, Tensor]:
        """Evaluates a model on the photos of a loader: see utils.evaluate."""
        run = self.run
        loader.sampler.set_epoch(0)
        progress = Progress(title, len(loader.sampler))
        batches = self.in_step(loader, run.batches_over(loader.sampler.length))
        try:
            return evaluate(model, batches, run.device, progress.update, run.world)
        finally:
            progress.close()

    def load_best(self) -> dict:
        """Puts the weights of best.pth, as it lies on disk, into `evaluated`; returns the file."""
        self.run.world.wait()  # the first process has written it
        checkpoint = load_checkpoint(self.run.folder / "best.pth")
        load_model_state(self.evaluated, checkpoint["model"])
        return checkpoint

    def keep_best(self, row: dict) -> None:
        """Writes best.pth when the epoch is the best so far (`goodness`).

        Any epoch after the warm-up is better than one of it: there luck decides, for the head has
        learned next to nothing. Without validation photos the last one is.
        """

        def key(row: dict) -> tuple:
            return row["epoch"] > self.run.warmup, *goodness(row, self.run.options.best_by)

        best = self.position.best
        if not best or not advice.validated(row) or key(row) > key(best):
            self.position.best = dict(row)
            self.save_best(self.checkpoint())

    def evaluate_start(self) -> None:
        """Evaluates the untrained model and writes it as best.pth and last.pth (--epochs 0)."""
        found, _ = self.validation_metrics()
        self.position.best = {"epoch": 0, **found}
        self.save_best(self.checkpoint())
        self.save()


def goodness(row: dict, best_by: str | None) -> tuple:
    """Returns what tells which of two epochs is the better one, by their metrics.

    best_by: None in a run that was begun before there was a choice.
    """
    if best_by == "loss":
        return (-row["val_loss"],)
    names = {"balanced": "val_balanced", "probability": "val_probability"}
    return row[names.get(best_by, "val_acc")], -row["val_loss"]
