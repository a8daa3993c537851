"""A head on few photos: the rate that suits it, and what tells its best epoch.

    python -m benchmarks.small_folders --weights FILE --data flower_photos --data trashnet

Of each data set 400 photos judge, and of the others a folder is drawn, six times, of which a fifth
validates. The head trains with AdamW in the batches that train.py chooses for so many photos, at a
rate that falls with the batch linearly, by its square root, or not at all. Each row gives accuracy
and log loss on the judging photos of the epoch that is best by the validation photos' accuracy (of
equals the lower loss), by their loss, by the mean probability of what they are, and of the last.
"""

from statistics import mean

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.forms.training import drawn
from benchmarks.pools import BATCH, RATE, Pool, answers, asked_for, best_epoch, parser_for
from system.terminal import table
from training.choices import Case, choose

FOLDERS, JUDGES, LEAST = 6, 400, 2
RATES = {"linearly": 1.0, "by its root": 0.5, "not at all": 0.0}  # the power of batch / BATCH
RULES = ("accuracy", "loss", "probability", "the last")


def folder(photos: Pool, count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the photos that train, validate and judge, by index."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(photos), generator=generator)
    judges, pool = order[:JUDGES], order[JUDGES:]
    ours = pool[drawn(photos.labels[pool], count, LEAST)]
    ours = ours[torch.randperm(len(ours), generator=generator)]
    return ours[len(ours) // 5 :], ours[: len(ours) // 5], judges


def best_epochs(logits: Tensor, labels: Tensor) -> dict[str, int]:
    """Returns the epoch that each of `RULES` chooses by validation photos, logits (E, M, K)."""
    rows = torch.arange(len(labels))
    found = {rule: best_epoch(logits, labels, rows, rule) for rule in RULES[:-1]}
    return found | {RULES[-1]: len(logits) - 1}


def measure(photos: Pool, count: int, power: float) -> dict[str, list[tuple[float, float]]]:
    """Returns (accuracy, loss) on the judging photos by rule, of each folder."""
    found: dict[str, list[tuple[float, float]]] = {rule: [] for rule in RULES}
    for seed in range(FOLDERS):
        train, val, judges = folder(photos, count, seed)
        size = choose(Case("head", len(train), 10), {})["batch_size"][0]
        rate = RATE * (size / BATCH) ** power
        logits = answers(photos, train, seed, rate, size)
        for rule, epoch in best_epochs(logits[:, val], photos.labels[val]).items():
            judged, labels = logits[epoch, judges], photos.labels[judges]
            right = (judged.argmax(1) == labels).float().mean().item()
            found[rule].append((right, F.cross_entropy(judged, labels).item()))
    return found


def main() -> None:
    parser = parser_for(__doc__)
    parser.add_argument("--photos", type=int, nargs="+", default=[50, 100, 200, 400])
    options = parser.parse_args()
    pools = list(asked_for(options))
    rows = [("photos", "the rate falls", *RULES)]
    for count in options.photos:
        fit = [photos for photos in pools if count >= 2 * LEAST * photos.classes]
        for words, power in RATES.items():
            found = [measure(photos, count, power) for photos in fit]
            cells = []
            for rule in RULES:
                values = [pair for one in found for pair in one[rule]]
                acc, loss = (mean(column) for column in zip(*values, strict=True))
                cells.append(f"{acc:.3f}, {loss:.3f}")
            rows.append((str(count), words, *cells))
    print(*table(rows, "<<" + ">" * len(RULES)), sep="\n")


if __name__ == "__main__":
    main()
