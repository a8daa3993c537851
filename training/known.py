"""What a finished model keeps of its training photos: `known` in best.pth, features.npz beside it.

By the first a photo unlike them is called unknown, with the second the nearest of them are shown.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from formats.known import Known, kept
from imaging.splitting import Samples, relative
from my_dataset import PhotoLoader
from system.files import atomic_file
from training import feature_cache
from training.assembly import judging_loader
from training.feature_cache import CachedLoader
from training.progress import Progress
from training.setup import Run
from training.trainer import Trainer
from vit_model import VisionTransformer, create_model

FEATURES = "features.npz"
MOST_PHOTOS = 20_000


@dataclass(frozen=True)
class Looked:
    """Photos that could be read: paths (M), labels (M,), features (M, F) as the head has them."""

    paths: list[str]
    labels: Tensor
    features: Tensor


def remember(trainer: Trainer, checkpoint: dict, scores: Tensor | None = None) -> Known:
    """Looks at the training photos once more with the best model; writes features.npz.

    checkpoint: of that model, which `trainer.evaluated` has. scores: of photos that models were not
        trained on, where folds found them; else the validation photos tell, and where nothing but
        the head was trained, each training photo by the others.
    """
    run = trainer.run
    model = _whole(trainer, checkpoint)
    train = _look(trainer, model, run.data.train, trainer.train_loader)
    if run.world.first:
        _write(run, train)
    if scores is not None:
        return Known.fit(train.features, train.labels).judged_by(scores)
    val = run.data.val.paths and _look(trainer, model, run.data.val, trainer.val_loader)
    frozen = feature_cache.plan(run.model, run.trainable) > len(run.model.blocks)
    return Known.fit(
        train.features,
        train.labels,
        val.features if val else None,
        run.data.groups_of(train.paths) if frozen else None,
    )


def judged_scores(trainer: Trainer, checkpoint: dict) -> Tensor:
    """Returns the scores of the validation photos, as the training photos of the same run tell."""
    run = trainer.run
    model = _whole(trainer, checkpoint)
    train = _look(trainer, model, run.data.train, trainer.train_loader)
    val = _look(trainer, model, run.data.val, trainer.val_loader)
    return Known.fit(train.features, train.labels).distances(val.features)


def _whole(trainer: Trainer, checkpoint: dict) -> VisionTransformer:
    """Returns the model with all of its weights on this device."""
    run = trainer.run
    if not run.sharded:
        return trainer.evaluated
    model = create_model(**run.model.config)
    model.load_state_dict(checkpoint["model"])
    return model.to(run.device).eval()


def _look(
    trainer: Trainer,
    model: VisionTransformer,
    samples: Samples,
    loader: PhotoLoader | CachedLoader,
) -> Looked:
    """Returns what a model's head reads of photos: as `loader` has it, if it serves just that."""
    run, depth = trainer.run, len(model.blocks)
    if isinstance(loader, PhotoLoader) or trainer.skip <= depth or len(loader.features) > 1:
        rows = kept(torch.tensor(samples.labels), MOST_PHOTOS).tolist()
        samples = Samples(*([side[row] for row in rows] for side in samples))
        progress = Progress("features of photos", len(rows))
        loader = feature_cache.fill(
            model, depth + 1, judging_loader(run, samples), 1, run.device, None, run.folder,
            run.world, progress.bar.update,
        )  # fmt: skip
        progress.close()
    rows = torch.tensor([row for row in range(len(loader.rows)) if row not in loader.failed])
    rows = rows[kept(loader.labels[loader.rows[rows]], MOST_PHOTOS)]
    features = loader.features[0][loader.rows[rows]].flatten(1).float()
    labels = loader.labels[loader.rows[rows]]
    return Looked([samples.paths[row] for row in rows.tolist()], labels, features)


def _write(run: Run, looked: Looked) -> None:
    """Writes features.npz: features in half precision, and paths as split.json has them."""
    root = run.data.root
    with atomic_file(run.folder / FEATURES) as file:
        np.savez_compressed(
            file,
            features=looked.features.half().numpy(),
            paths=np.array([relative(path, root) for path in looked.paths], dtype=str),
            labels=looked.labels.numpy(),
            classes=np.array(run.data.classes, dtype=str),
        )
