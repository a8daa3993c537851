"""Folds: every photo is judged by a model that was trained without it.

    run/              an ordinary run on all photos, which waits for its folds before its first step
    run/fold1/ ...    an ordinary run each, on all but one part of the photos, judged on that part

Each fold is a run with a last.pth of its own, so that a killed one goes on where it stood; a
finished one is known by its answers.pth. The epoch that was best in the folds, on the mean, is the
last one on all photos. With --ensemble the models of the folds are kept instead.
"""

import statistics
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from formats.checkpoints import load_checkpoint, save_checkpoint
from formats.opening import open_pickle
from imaging.digests import digests
from imaging.grouping import grouped_folds
from imaging.splitting import DataSplit, Samples
from parallel.sharding import load_model_state
from system.devices import seed_everything
from system.files import safe_cell, write_json, write_table
from training.assembly import for_fold, keep_decoded, prepare
from training.conclusion import (
    Answers,
    Conclusion,
    answers_to_test,
    epochs_to_choose,
    finish,
    finished,
    judge_test,
    write_results_json,
)
from training.known import judged_scores, remember
from training.position import Position
from training.resuming import load_state
from training.run_folder import first_log, fold_folders
from training.setup import Run
from training.trainer import Trainer
from utils import EpochResult
from vit_model import create_model

ANSWERS = "answers.pth"
TABLE = "out_of_fold.csv"


def pooled(data: DataSplit, folds: int, seed: int) -> DataSplit:
    """Returns the data with all photos but those for testing to train on, none to validate on.

    Raises ValueError where they cannot be cut into so many folds.
    """
    paths, labels = data.train.paths + data.val.paths, data.train.labels + data.val.labels
    pairs = sorted(zip(labels, paths, strict=True))
    train = Samples([path for _, path in pairs], [label for label, _ in pairs])
    counts = {name: (a + b, 0, *test) for name, (a, b, *test) in data.report.counts.items()}
    note = f"{folds} folds: each photo is judged once, by a model that is trained without it"
    problems = [
        problem._replace(kind="near conflict in folds")  # for there every photo is judged
        if problem.kind == "near conflict"
        else problem
        for problem in data.report.problems
    ]
    notes = [*data.report.notes, note]
    report = replace(data.report, counts=counts, problems=problems, notes=notes)
    choice = {key: value for key, value in data.choice.items() if key != "val_split"}
    choice |= {"folds": folds}
    whole = replace(data, train=train, val=Samples([], []), report=report, choice=choice)
    parts_of(whole, folds, seed)
    return whole


def parts_of(data: DataSplit, folds: int, seed: int) -> list[list[int]]:
    """Returns which of the photos to train on each fold judges, by index."""
    names = [data.classes[label] for label in data.train.labels]
    return grouped_folds(data.train.paths, names, data.groups, folds, seed, root=data.root)


@dataclass
class Folds:
    """The folds of a run: indices of the photos that each judges, among those to train on."""

    run: Run
    parts: list[list[int]]

    @classmethod
    def of(cls, run: Run) -> "Folds":
        """The folds that a run's data and seed give; tells the run its epochs once they have."""
        data, options = run.data, run.options
        folds = cls(run, parts_of(data, options.folds, options.seed))
        if run.state is None and run.world.first:
            folds.clear()
        run.world.wait()
        if all(map(folds.is_done, range(len(folds.parts)))):
            run.epochs_of_folds = folds.epochs()
        return folds

    def folder(self, k: int) -> Path:
        return self.run.folder / f"fold{k + 1}"

    def is_done(self, k: int) -> bool:
        return self.run.world.first_does((self.folder(k) / ANSWERS).exists)

    def clear(self) -> None:
        """Removes what folds of another run have left in the folder of a new one."""
        for name in (ANSWERS, "last.pth", "best.pth"):
            for folder in (self.run.folder, *fold_folders(self.run.folder)):
                (folder / name).unlink(missing_ok=True)

    # --- training -------------------------------------------------------------------------------

    def train(self, whole: Trainer) -> int:
        """Trains the folds that are not done; returns 0, or the number of the signal that stopped.

        whole: of the run on all photos, before its first step.
        """
        run = self.run
        if run.state is None:
            whole.save()  # from now on the run can go on
        if run.epochs_of_folds is None:
            for k in range(len(self.parts)):
                if not self.is_done(k) and (stopped_by := self._train(k, whole)):
                    return stopped_by
            run.epochs_of_folds = self.epochs()
            seed_everything(run.options.seed)
        if not whole.skip and not run.options.ensemble:
            keep_decoded(run, whole.train_loader)
        return 0

    def _train(self, k: int, whole: Trainer) -> int:
        judged = set(self.parts[k])
        trained = [i for i in range(len(self.run.data.train.paths)) if i not in judged]
        fold = self._run(k, trained)
        at = f"at epoch {fold.position.epoch + 1}" if fold.state else "from the start"
        print(f"fold {k + 1} of {len(self.parts)}, {at}: {len(trained)} photos to train on")
        stepper = prepare(fold)
        with first_log(fold) as log:
            trainer = for_fold(whole, fold, stepper, trained, self.parts[k])
            stopped_by = trainer.fit(log)
            if not fold.over():
                return stopped_by
            answers = self._answered(k, trainer)
        print(f"fold {k + 1}: accuracy {answers['accuracy']:.4f}")
        if self.run.world.first:
            save_checkpoint(fold.folder / ANSWERS, answers)
            for name in ["last.pth"] if self.run.options.ensemble else ["last.pth", "best.pth"]:
                (fold.folder / name).unlink(missing_ok=True)
        self.run.world.wait()  # until all can read them
        return stopped_by

    def _answered(self, k: int, trainer: Trainer) -> dict:
        """Returns what the best model of a fold says of the photos that it was trained without."""
        checkpoint = trainer.load_best()
        result, probabilities, indices = trainer.validate()
        if self.run.options.ensemble:  # which keeps this model, and what it knows by itself
            known = remember(trainer, checkpoint)
            trainer.save_best(checkpoint | {"known": known.to_dict()})
            scores = known.scores
        else:
            scores = judged_scores(trainer, checkpoint)
        return {
            "probabilities": probabilities,
            "indices": torch.tensor([self.parts[k][i] for i in indices]),
            "loss": result.loss,
            "accuracy": result.accuracy,
            "epoch": trainer.position.best["epoch"],
            "among": epochs_to_choose(trainer.run),
            "scores": scores,
        }

    def _run(self, k: int, trained: list[int]) -> Run:
        """Returns the run of a fold: new, or as its last.pth has it."""
        run, folder, data = self.run, self.folder(k), self._data(k, trained)
        begun = run.world.first_does((folder / "last.pth").exists)
        own = {"folds": None, "ensemble": False, "save_adapter": False, "output": str(folder)}
        settings = run.options.settled(**own)
        model = create_model(**run.model.config)
        model.load_state_dict(run.model.state_dict())
        state = load_state(folder) if begun else None
        if run.world.first and not begun:
            folder.mkdir(exist_ok=True)
            write_json(folder / "split.json", data.to_dict())
            write_json(folder / "args.json", settings.to_dict())
        seed_everything(run.options.seed)
        workers = run.options.workers
        return replace(
            run,
            options=settings,
            folder=folder,
            data=data,
            model=model,
            state=state,
            position=Position.of(state, run.device, run.world) if begun else Position(),
            backbone=None,
            trained_on=digests(data.train.paths, workers) if run.options.ensemble else "",
        )

    def _data(self, k: int, trained: list[int]) -> DataSplit:
        data = self.run.data
        train, val = (
            Samples([data.train.paths[i] for i in rows], [data.train.labels[i] for i in rows])
            for rows in (trained, self.parts[k])
        )
        return replace(data, train=train, val=val, test=None)

    # --- what they found ------------------------------------------------------------------------

    def answers(self, k: int) -> dict:
        """Returns what a fold found; raises ValueError, naming the file, where that is spoilt."""
        path = self.folder(k) / ANSWERS
        found = open_pickle(path)
        shape = len(self.run.data.classes)
        try:
            whole = found["probabilities"].shape == (len(found["indices"]), shape)
            numbers = [found[name] for name in ("loss", "accuracy", "epoch", "among")]
            scores = found.setdefault("scores", torch.empty(0))  # of earlier versions
            if not (whole and scores.dim() == 1 and scores.isfinite().all()):
                raise ValueError
            if not {*found["indices"].tolist()} <= {*self.parts[k]}:
                raise ValueError
            if not all(type(number) in (int, float) for number in numbers):
                raise ValueError
        except (KeyError, TypeError, AttributeError, ValueError):
            raise ValueError(
                f"{path} does not hold the answers of this fold: remove it, and the fold is "
                f"trained again"
            ) from None
        return found

    def all_answers(self) -> list[dict]:
        return [self.answers(k) for k in range(len(self.parts))]

    def epochs(self) -> int:
        """Returns for how many epochs to train on all photos; 0 where no such model is wanted."""
        if self.run.options.ensemble:
            return 0
        return max(1, round(statistics.mean(found["epoch"] for found in self.all_answers())))

    def conclude(self, trainer: Trainer) -> Conclusion:
        """Judges the run by what its folds have answered; writes results and out_of_fold.csv."""
        run, found = self.run, self.all_answers()
        val = self._out_of_fold(found)
        accuracies = [one["accuracy"] for one in found]
        among = max(one["among"] for one in found)
        if run.options.ensemble:
            test = self._test_members(trainer) if run.data.test else None
            conclusion = Conclusion.fitted(val, test, among, accuracies)
            self._finish_members(conclusion)
            if run.world.first:
                write_results_json(run, conclusion)
        else:
            checkpoint = trainer.load_best()
            test = answers_to_test(trainer) if run.data.test else None
            conclusion = Conclusion.fitted(val, test, among, accuracies)
            known = remember(trainer, checkpoint, torch.cat([one["scores"] for one in found]))
            conclusion = finish(trainer, checkpoint, conclusion, known)
        if run.world.first:
            self._write_table(conclusion)
        return conclusion

    def _out_of_fold(self, found: list[dict]) -> Answers:
        """Returns the answers to all photos, each of the model that was trained without it."""
        count = sum(len(one["indices"]) for one in found)
        loss = sum(len(one["indices"]) * one["loss"] for one in found) / count
        indices = torch.cat([one["indices"] for one in found])
        order = indices.argsort()
        probabilities = torch.cat([one["probabilities"] for one in found])[order]
        result = EpochResult(loss, 0.0, count)  # the accuracy follows from the answers
        return Answers.of(self.run, self.run.data.train, (result, probabilities, indices[order]))

    def _members(self) -> list[Path]:
        return [self.folder(k) / "best.pth" for k in range(len(self.parts))]

    def _test_members(self, trainer: Trainer) -> Answers:
        """Returns what the models of all folds together answer to the test photos."""
        evaluated = []
        for path in self._members():
            load_model_state(trainer.evaluated, load_checkpoint(path)["model"])
            evaluated.append(judge_test(trainer))
        return Answers.of(self.run, self.run.data.test, *evaluated)

    def _finish_members(self, conclusion: Conclusion) -> None:
        if self.run.world.first:
            for path in self._members():
                save_checkpoint(path, finished(load_checkpoint(path), conclusion))

    def _write_table(self, conclusion: Conclusion) -> None:
        """Writes out_of_fold.csv: each photo's label, answer and probabilities, as calibrated."""
        val, classes = conclusion.val, self.run.data.classes
        rows = [["image", "label", "predicted", *map(safe_cell, classes)]]
        for path, label, answers in zip(val.paths, val.labels, val.probabilities, strict=True):
            names = (safe_cell(classes[index]) for index in (label, answers.argmax()))
            rows.append([safe_cell(path), *names, *(f"{share:.6f}" for share in answers)])
        write_table(self.run.folder / TABLE, rows)
