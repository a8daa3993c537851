"""Whether probabilities mean what they say on photos that were in no part of a run.

    python -m benchmarks.calibration --weights FILE --data flower_photos --data trashnet

Of each data set half the photos are a run, five times: a head is trained on four fifths of them,
the best epoch chosen and a temperature fitted on the last fifth, as train.py does; and with
--folds 5, each photo answers once, which gives the temperature of a head on all of them. The other
half tells the expected calibration error (15 bins): without a temperature, with that of the
validation photos, with that of the folds, with the best one possible (fitted on the judged photos
themselves).

An error of 0 is out of reach: accuracies of bins are measured on some photos. "perfect" is what the
same probabilities would show if each label was drawn by them.
"""

from statistics import mean

import numpy as np
import torch
from torch import Tensor

from benchmarks.pools import (
    EPOCHS,
    Pool,
    answers,
    asked_for,
    best_epoch,
    parser_for,
    probabilities,
)
from imaging.grouping import grouped_folds
from reporting.calibration import at_temperature, calibration_error, fit_temperature
from system.terminal import table

SPLITS, FOLDS = 5, 5


def of_folds(photos: Pool, run: Tensor, seed: int) -> tuple[np.ndarray, Tensor, int]:
    """Returns out-of-fold probabilities, whose photos they are, and the mean best epoch."""
    names = [str(i) for i in run.tolist()]
    parts = grouped_folds(names, photos.labels[run].tolist(), {}, FOLDS, seed)
    found, rows, epochs = [], [], []
    for part in parts:
        judged = run[part]
        kept = torch.ones(len(run), dtype=torch.bool)
        kept[part] = False
        logits = answers(photos, run[kept], seed)
        epochs.append(best_epoch(logits, photos.labels, judged))
        found.append(probabilities(logits[epochs[-1]][judged]))
        rows.append(judged)
    return np.concatenate(found), torch.cat(rows), round(mean(epochs))


def errors(photos: Pool, seed: int) -> list[float]:
    """Returns accuracy, the errors of one split as the table has them, and the temperatures."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(photos), generator=generator)
    run, rest = order[: len(order) // 2], order[len(order) // 2 :]
    names = [str(i) for i in run.tolist()]
    val = grouped_folds(names, photos.labels[run].tolist(), {}, FOLDS, seed)[0]
    kept = torch.ones(len(run), dtype=torch.bool)
    kept[val] = False
    logits = answers(photos, run[kept], seed)
    chosen = logits[best_epoch(logits, photos.labels, run[val])]
    labels, judged = photos.labels.numpy(), photos.labels[rest].numpy()
    raw = probabilities(chosen[rest])
    fitted = fit_temperature(probabilities(chosen[run[val]]), labels[run[val]])

    folded, rows, epoch = of_folds(photos, run, seed)
    whole = probabilities(answers(photos, run, seed)[min(epoch, EPOCHS - 1)][rest])
    of_all = fit_temperature(folded, labels[rows])

    def perfect(sure: np.ndarray) -> float:
        rng = np.random.default_rng(seed)
        drawn = [rng.choice(len(row), p=row / row.sum()) for row in sure]
        return calibration_error(sure, drawn)

    ideal = at_temperature(raw, fit_temperature(raw, judged))
    return [
        float((raw.argmax(1) == judged).mean()),
        calibration_error(raw, judged),
        calibration_error(at_temperature(raw, fitted), judged),
        calibration_error(whole, judged),
        calibration_error(at_temperature(whole, of_all), judged),
        calibration_error(ideal, judged),
        perfect(ideal),
        fitted,
        of_all,
    ]


def main() -> None:
    options = parser_for(__doc__).parse_args()
    heads = ("photos", "accuracy", "as it is", "temperature", "folds as it is", "folds", "best")
    rows = [(*heads, "perfect", "T", "T of folds")]
    for photos in asked_for(options):
        found = np.mean([errors(photos, seed) for seed in range(SPLITS)], axis=0)
        rows.append((photos.name, *(f"{value:.3f}" for value in found)))
        print(*rows[-1], flush=True)
    print(*table(rows, "<" + ">" * 9), sep="\n")


if __name__ == "__main__":
    main()
