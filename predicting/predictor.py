"""Photos in, answers out, in their order: decoded by threads, computed in batches.

from predict import Predictor

predictor = Predictor("weights/run/best.pth")
predictor("photo.jpg")                  # the dict that predict.py --json prints for it
predictor(["a.jpg", pil_image])         # a list of them, for paths and pictures
for answer in predictor.answers(photos): ...
"""

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from formats.known import UNKNOWN_SHARE
from imaging.decoding import decode_picture, load_image
from imaging.depth import Reading
from imaging.preprocess import eval_transform
from predicting.classifier import Classifier, Seen, open_classifier
from predicting.inputs import Photo, expand
from predicting.writers import Answer, Score, as_record
from system.devices import default_workers, pick_device


class Decoded(NamedTuple):
    photo: Photo
    tensor: Tensor | None = None  # (3, H, W), None where the photo could not be read
    image: Image.Image | None = None  # where a writer draws on it


class Predictor:
    """A trained model that answers for photos as predict.py does.

    model: a file of any format, or a `Classifier`. class_indices: names for weights that hold none.
    device: auto, cpu, cuda, cuda:1, mps. batch_size: photos at a time; workers: threads that decode
    and, on a CPU, compute. tta: the mean of each photo and its mirror. topk: classes of an answer;
    threshold: below this probability it is unsure. unknown: the share of photos like those of the
    training set that may be called unlike it; 0 for none.
    """

    def __init__(
        self,
        model: str | Path | Classifier,
        *,
        class_indices: str | None = None,
        device: str | torch.device = "auto",
        batch_size: int = 16,
        workers: int | None = None,
        tta: bool = False,
        topk: int = 5,
        threshold: float = 0.0,
        unknown: float = UNKNOWN_SHARE,
    ) -> None:
        self.device = pick_device(device) if isinstance(device, str) else device
        if not isinstance(model, Classifier):
            model = open_classifier(str(model), class_indices, self.device)
        self.classifier, self.classes = model, model.classes
        self.batch_size, self.workers = batch_size, workers or default_workers()
        self.tta, self.topk = tta, topk
        self.threshold, self.unknown = threshold, unknown

    def __call__(self, photos) -> dict | list[dict]:
        """Returns the dict of one photo, or a list for several: a list of them, or a folder.

        A photo is a path, an open binary file, a PIL image or an array (H, W, 3) of bytes. One that
        cannot be read has an `error` in place of `predictions`.
        """
        listed = isinstance(photos, list | tuple)
        several = listed or (_is_path(photos) and os.path.isdir(photos))
        items = photos if listed else [photos]
        found = chain.from_iterable(map(self._named, items))
        records = [as_record(answer) for answer in self.answers(found)]
        return records if several else records[0]

    def _named(self, photo) -> Iterator[Photo]:
        if _is_path(photo):
            return expand(os.fspath(photo), self.classes)
        image = Image.fromarray(photo) if isinstance(photo, np.ndarray) else photo
        name = getattr(image, "filename", None) or getattr(image, "name", None)
        return iter([Photo(name if isinstance(name, str) else None, source=image)])

    def answers(self, photos: Iterable[Photo], keep_image: bool = False) -> Iterator[Answer]:
        """Yields an Answer for each photo, in order, with a few batches in memory at most.

        keep_image: for writers that draw on the photos.
        """
        transform = eval_transform(self.classifier.preprocess)
        read = partial(decode, transform=transform, keep_image=keep_image)
        groups = batches(photos, self.batch_size)
        first, second = next(groups, []), next(groups, [])
        groups = chain([first, second] if second else [first], groups)
        if self.device.type == "cpu" and second:
            yield from by_batch(groups, read, self.answer_batch, self.workers)
            return
        with ThreadPoolExecutor(self.workers) as pool:  # decodes while the device computes
            single, ahead = chain.from_iterable(groups), 2 * self.batch_size
            for batch in batches(in_order(pool, read, single, ahead), self.batch_size):
                yield from self.answer_batch(batch)

    def answer_batch(self, batch: Sequence[Decoded]) -> Iterator[Answer]:
        """Yields an Answer for each photo of `batch`, in its order."""
        readable = [item.tensor for item in batch if item.tensor is not None]
        rows = iter(rows_of(self.see(torch.stack(readable))) if readable else ())
        for photo, tensor, image in batch:
            truth = photo.truth
            label = None if truth is None else self.classes[truth]
            known = {"truth": truth, "label": label, "folder": photo.folder}
            if tensor is None:
                yield Answer(photo.path, error=photo.error, **known)
                continue
            probabilities, features, strangeness = next(rows)
            best = probabilities.topk(min(self.topk, len(self.classes)))
            pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            top = [(index, self.classes[index], probability) for index, probability in pairs]
            if top[0][2] != top[0][2]:
                error = "the model's output for this photo is not a number"
                yield Answer(photo.path, error=error, **known)
            else:
                yield Answer(
                    photo.path,
                    top,
                    unsure=top[0][2] < self.threshold,
                    unknown=strangeness is not None and bool(strangeness <= self.unknown),
                    image=image,
                    features=features,
                    **known,
                )

    def see(self, images: Tensor) -> Seen:
        """What the model makes of images (B, 3, H, W), with probabilities in place of logits.

        On the CPU; with `tta` the mean of each image and its mirror.
        """
        seen = [self._seen(images)]
        if self.tta:
            seen.append(self._seen(images.flip(-1)))
        together = zip(*seen, strict=True)
        return Seen(*(None if None in one else torch.stack(one).mean(0) for one in together))

    @torch.inference_mode()
    def _seen(self, images: Tensor) -> Seen:
        seen = self.classifier.see(images.to(self.device))
        logits = seen.logits.float()
        softmax = self.classifier.answers == "softmax"  # else each class by itself
        seen = seen._replace(logits=logits.softmax(-1) if softmax else logits.sigmoid())
        return Seen(*(values if values is None else values.cpu() for values in seen))

    def score(self, photos: Iterable[Photo]) -> Score:
        """The score over photos in class folders, without those that the model was trained on."""
        score = Score(self.classes, self.classifier.trained_on)
        for answer in self.answers(photos):
            score.write(answer)
        return score


def _is_path(photo) -> bool:
    return isinstance(photo, str | os.PathLike)


def rows_of(seen: Seen) -> Iterator[tuple]:
    """Yields of each image its probabilities (K,), features (F,) and strangeness, or None."""
    return zip(*(repeat(None) if values is None else values for values in seen), strict=False)


# --- photos in order ----------------------------------------------------------------------------


def decode(photo: Photo, transform, keep_image: bool) -> Decoded:
    """Reads one photo; whatever is wrong with it becomes its `error`."""
    if photo.error:
        return Decoded(photo)
    try:
        # No data set was looked at that could tell what numbers mean of which the model knows none.
        image = open_source(photo, transform.min_size, replace(transform.reading, strict=True))
        return Decoded(photo, transform(image), image if keep_image else None)
    except Exception as error:  # a damaged file can make a decoder raise anything at all
        reason = getattr(error, "reason", None) or str(error) or type(error).__name__
        return Decoded(photo._replace(error=reason))


def open_source(
    photo: Photo,
    min_size: int,
    reading: Reading = Reading(),  # noqa: B008 (frozen)
) -> Image.Image:
    """Returns the photo upright and in RGB, from its file or from memory."""
    if isinstance(photo.source, Image.Image):
        return decode_picture(photo.source, min_size, reading)
    return load_image(photo.path if photo.source is None else photo.source, min_size, reading)


def in_order(pool: ThreadPoolExecutor, function, items: Iterable, ahead: int) -> Iterator:
    """pool.map with at most `ahead` results waiting, so that memory does not grow with `items`."""
    waiting: deque = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            while waiting and (len(waiting) > ahead or waiting[0].done()):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def batches(items: Iterable, size: int) -> Iterator[list]:
    """Groups of `size`; the last one is shorter."""
    batch: list = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def by_batch(groups: Iterable[list[Photo]], read, answer, workers: int) -> Iterator[Answer]:
    """On a CPU: each thread decodes and computes whole batches, on its share of the cores.

    Two threads for decoding beside two of torch's would get into each other's way: torch's wait for
    one another in every layer (7 photos a second where 60 were possible, measured).
    """
    threads = torch.get_num_threads()
    share = max(1, threads // workers)

    def work(group: list[Photo]) -> list[Answer]:
        return list(answer([read(photo) for photo in group]))

    try:
        with ThreadPoolExecutor(
            workers, initializer=torch.set_num_threads, initargs=(share,)
        ) as pool:
            for found in in_order(pool, work, groups, ahead=workers):
                yield from found
    finally:
        torch.set_num_threads(threads)
