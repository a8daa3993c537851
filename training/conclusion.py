"""What a run has come to: how right its model is, how sure that is, what its probabilities mean.

At the end, once: the best epoch's answers to the validation photos (with folds, to each photo that
of the model which was trained without it) give a temperature, and the photos kept for testing are
judged. best.pth takes both, results.json says all of it.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from formats.known import UNKNOWN_SHARE, Known
from imaging.digests import DIGEST
from imaging.splitting import Samples
from reporting.calibration import at_temperature, calibration_error, fit_temperature, log_loss
from reporting.intervals import Accuracy, accuracy_of
from reporting.metrics import balanced_accuracy
from system.files import json_if_any, write_json
from system.terminal import counted
from training.assembly import judging_loader
from training.known import remember
from training.setup import Run
from training.trainer import Trainer

RESULTS = "results.json"


@dataclass(frozen=True)
class Answers:
    """What M models together, mostly one, answer to N photos.

    groups: the name of each photo's group. raw: the models' probabilities (M, N, K) at temperature
    1. loss: at that temperature, on the mean.
    """

    paths: list[str]
    labels: np.ndarray
    groups: list[str]
    raw: np.ndarray
    loss: float
    temperature: float = 1.0

    @classmethod
    def of(cls, run: Run, samples: Samples, *evaluated: tuple) -> "Answers":
        """The answers to the photos of `samples` that `utils.evaluate` found, of each model."""
        raw = np.stack([probabilities.double().numpy() for _, probabilities, _ in evaluated])
        indices = evaluated[0][2]
        paths = [samples.paths[i] for i in indices]
        labels = np.array([samples.labels[i] for i in indices], dtype=int)
        loss = sum(result.loss for result, _, _ in evaluated) / len(evaluated)
        return cls(paths, labels, run.data.groups_of(paths), raw, loss)

    def at(self, temperature: float) -> np.ndarray:
        """Probabilities (N, K): the mean of the models', each at a temperature."""
        return np.mean([at_temperature(one, temperature) for one in self.raw], axis=0)

    @cached_property
    def probabilities(self) -> np.ndarray:
        return self.at(self.temperature)

    @cached_property
    def predicted(self) -> np.ndarray:
        return self.probabilities.argmax(1)

    @property
    def accuracy(self) -> Accuracy:
        right = self.predicted == self.labels
        return accuracy_of(right, self.groups)

    def recall(self, label: int) -> Accuracy | None:
        """The share of a class's photos that is right; None where it has none."""
        own = np.flatnonzero(self.labels == label)
        right = self.predicted[own] == label
        return accuracy_of(right, [self.groups[i] for i in own])

    def error(self, temperature: float) -> float | None:
        """The expected calibration error at a temperature."""
        return calibration_error(self.at(temperature), self.labels)


@dataclass(frozen=True)
class Conclusion:
    """What a run has come to.

    val: answers to validation photos; with folds to all photos, each out of its fold. among: the
    epochs of which the best was taken. folds: the accuracy of each, if there are. known: what tells
    photos unlike those of the training set; None of an ensemble, whose models have one each.
    """

    val: Answers
    test: Answers | None
    temperature: float
    among: int
    folds: Sequence[float] = ()
    known: Known | None = None

    @classmethod
    def fitted(cls, val: Answers, test: Answers | None, among: int, folds=()) -> "Conclusion":
        """What answers come to at the temperature at which those of `val` are likeliest."""
        temperature = fit_temperature(val.at(1.0), val.labels)
        val, test = (one and replace(one, temperature=temperature) for one in (val, test))
        return cls(val, test, temperature, among, folds)

    @property
    def kind(self) -> str:
        """What the accuracy is called."""
        return "out-of-fold accuracy" if self.folds else "validation accuracy"

    @property
    def judged(self) -> Answers:
        """The answers that no choice has looked at, where there are any."""
        return self.test or self.val

    @property
    def caveat(self) -> str:
        """What makes the accuracy too good, in words; "" where nothing does."""
        if self.among < 2:
            return ""
        where = "each fold's" if self.folds else "the"
        return f"{where} epoch was chosen among {self.among} on them, so it is optimistic"

    def metrics(self) -> dict[str, float]:
        """What the checkpoint keeps."""
        found = _told("val", self.val) | {"val_loss": self.val.loss, "chosen_among": self.among}
        return found | (_told("test", self.test) if self.test else {})


def _told(side: str, answers: Answers) -> dict[str, float]:
    told = answers.accuracy
    values = {"acc": told.share, "low": told.low, "high": told.high, "photos": told.photos}
    return {f"{side}_{name}": value for name, value in values.items()}


def conclude(trainer: Trainer) -> Conclusion:
    """Judges best.pth once the last epoch is over, and writes what was found into the run."""
    run = trainer.run
    checkpoint = trainer.load_best()
    val = Answers.of(run, run.data.val, trainer.validate())
    test = answers_to_test(trainer) if run.data.test else None
    found = Conclusion.fitted(val, test, among=epochs_to_choose(run))
    return finish(trainer, checkpoint, found, remember(trainer, checkpoint))


def epochs_to_choose(run: Run) -> int:
    """Returns among how many epochs a run has chosen its best one."""
    return max(0, len(run.position.history) - run.warmup)


def answers_to_test(trainer: Trainer) -> Answers:
    """Returns what the model now in `trainer.evaluated` answers to the test photos."""
    return Answers.of(trainer.run, trainer.run.data.test, judge_test(trainer))


def judge_test(trainer: Trainer) -> tuple:
    """Evaluates the model now in `trainer.evaluated` on the test photos: see utils.evaluate."""
    loader = judging_loader(trainer.run, trainer.run.data.test)
    return trainer.judge(loader, trainer.evaluated, "test")


def finish(trainer: Trainer, checkpoint: dict, found: Conclusion, known: Known) -> Conclusion:
    """Writes a finished best.pth with what was found of it, and results.json; returns the whole."""
    trainer.save_best(finished(checkpoint | {"known": known.to_dict()}, found))
    if trainer.run.world.first:
        write_results_json(trainer.run, found)
    return replace(found, known=known)


def finished(checkpoint: dict, found: Conclusion) -> dict:
    """Returns a checkpoint with its temperature and what is known of its accuracy."""
    metrics = checkpoint["metrics"] | found.metrics()
    return checkpoint | {"temperature": found.temperature, "metrics": metrics}


def write_results_json(run: Run, found: Conclusion) -> None:
    """Writes results.json; says so where the test photos had been judged before."""
    path = run.folder / RESULTS
    before, results = json_if_any(path), results_of(run, found)
    seen = isinstance(before, dict) and before.get("test_acc") is not None
    if seen and before.get("epochs") != results["epochs"]:
        print(
            f"note: the test photos were judged before, after {before.get('epochs')} epochs: what "
            f"was decided since then may have been decided by them"
        )
    write_json(path, results)


def results_of(run: Run, found: Conclusion) -> dict:
    """Returns what results.json says: shares, intervals [low, high], null where there is none.

    Log losses are in nats, of the probabilities at the temperature, as predict.py prints them.
    """
    position = run.position
    results: dict = {"epochs": len(position.history), "best_epoch": position.best.get("epoch")}
    for side, answers in (("val", found.val), ("test", found.test)):
        results |= {f"{side}_{key}": value for key, value in _side(run, answers).items()}
    judged = found.judged
    return results | {
        "chosen_among": found.among,
        "folds": list(found.folds) or None,
        "trained_on": len(run.trained_on) // DIGEST,
        "temperature": found.temperature,
        "ece_before": judged.error(1.0),
        "ece_after": judged.error(found.temperature),
        "ece_on": "test" if found.test else "val",
    }


def _side(run: Run, answers: Answers | None) -> dict:
    """Returns what is known from the answers to the photos of one side."""
    if answers is None:
        return dict.fromkeys(
            ("acc", "interval", "photos", "worth", "balanced_acc", "log_loss", "recall")
        )
    told, recall = answers.accuracy, {}
    for label, name in enumerate(run.data.classes):
        own = answers.recall(label)
        recall[name] = {
            "recall": own and own.share,
            "interval": own and own.interval,
            "photos": own.photos if own else 0,
        }
    return {
        "acc": told.share,
        "interval": told.interval,
        "photos": told.photos,
        "worth": told.worth,
        "balanced_acc": balanced_accuracy(answers.labels, answers.predicted),
        "log_loss": log_loss(answers.probabilities, answers.labels),
        "recall": recall,
    }


def said(found: Conclusion, best: dict, left_out: int = 0) -> list[str]:
    """Returns the lines on what a run has come to, for the terminal.

    left_out: photos that --exclude named.
    """
    accuracy = found.val.accuracy
    lines = []
    if found.folds:
        each = " ".join(f"{share:.4f}" for share in found.folds)
        spread = statistics.stdev(found.folds)
        mean = statistics.mean(found.folds)
        lines.append(f"{len(found.folds)} folds: accuracy {mean:.4f} ± {spread:.4f} ({each})")
    best_epoch = "" if found.folds else f"best: epoch {best['epoch']}, "
    caveat = f"; {found.caveat}" if found.caveat else ""
    lines += [f"{best_epoch}{found.kind} {accuracy.share:.4f} ({accuracy.words}{caveat})"]
    if found.test:
        told = found.test.accuracy
        lines.append(f"test accuracy {told.share:.4f} ({told.words}; judged once, at the end)")
    if left_out:
        lines.append(
            f"the {counted(left_out, 'photo')} that --exclude left out are not judged either: if a "
            f"model chose them, the accuracy is no comparison with one that has them"
        )
    before, after = (found.judged.error(t) for t in (1.0, found.temperature))
    lines.append(
        f"probabilities: temperature {found.temperature:.2f}; their error (ECE) on "
        f"{'test' if found.test else 'these'} photos {before:.3f} before, {after:.3f} with it"
    )
    return lines + ([unlike(found.known)] if found.known else [])


def unlike(known: Known) -> str:
    """Returns the line on photos unlike those of the training set."""
    judged = counted(len(known.scores), "photo")
    if known.least > UNKNOWN_SHARE:
        enough = math.ceil(1 / UNKNOWN_SHARE) - 1
        return (
            f"unlike photos: predict.py calls none unknown, for {judged} to set a limit by are too "
            f"few: it takes {enough} (--unknown {math.ceil(100 * known.least) / 100:.2f} works)"
        )
    return (
        f"unlike photos: predict.py calls them unknown, by their distance from these, and falsely "
        f"{UNKNOWN_SHARE:.0%} of photos like these (--unknown; the limit is set by {judged})"
    )
