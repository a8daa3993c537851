"""Photos in, answers out, in their order: decoded by threads, computed in batches."""

import argparse
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from imaging.decoding import load_image
from imaging.preprocess import eval_transform
from predicting.classifier import Classifier
from predicting.inputs import Photo
from predicting.writers import Answer, Score
from system.devices import default_workers


class Decoded(NamedTuple):
    photo: Photo
    tensor: Tensor | None = None  # (3, H, W), None where the photo could not be read
    image: object = None  # the PIL image, where a writer draws on it


def decode(photo: Photo, transform, keep_image: bool) -> Decoded:
    """Reads one photo; whatever is wrong with it becomes its `error`."""
    if photo.error:
        return Decoded(photo)
    try:
        image = load_image(photo.path, transform.min_size)
        return Decoded(photo, transform(image), image if keep_image else None)
    except Exception as error:  # a damaged file can make a decoder raise anything at all
        reason = getattr(error, "reason", None) or str(error) or type(error).__name__
        return Decoded(photo._replace(error=reason))


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


@torch.inference_mode()
def probabilities(images: Tensor, forward, device: torch.device, tta: bool = False) -> Tensor:
    """Images (B, 3, H, W) -> probabilities (B, K) on the CPU; `tta`: mean of image and mirror."""
    images = images.to(device)
    result = forward(images).float().softmax(-1)
    if tta:
        result = (result + forward(images.flip(-1)).float().softmax(-1)) / 2
    return result.cpu()


def answer_batch(batch: Sequence[Decoded], predict, classes, topk, threshold) -> Iterator[Answer]:
    """Yields an Answer for each photo of `batch`, in its order."""
    readable = [item.tensor for item in batch if item.tensor is not None]
    rows = iter(predict(torch.stack(readable)) if readable else ())
    for photo, tensor, image in batch:
        if tensor is None:
            yield Answer(photo.path, error=photo.error)
            continue
        best = next(rows).topk(min(topk, len(classes)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        top = [(index, classes[index], probability) for index, probability in pairs]
        if top[0][2] != top[0][2]:
            yield Answer(photo.path, error="the model's output for this photo is not a number")
        else:
            yield Answer(photo.path, top, top[0][2] < threshold, photo.truth, image=image)


def default_settings(**changes) -> argparse.Namespace:
    """The settings that `answer_photos` reads, for other programs that predict."""
    settings = {"batch_size": 16, "workers": default_workers(), "tta": False}
    return argparse.Namespace(**settings | {"topk": 5, "threshold": 0.0} | changes)


def answer_photos(
    photos: Iterable[Photo], classifier, args, device, keep_image
) -> Iterator[Answer]:
    """Yields an Answer for each photo, in order, with no more than a few batches in memory."""
    transform = eval_transform(classifier.preprocess)
    read = partial(decode, transform=transform, keep_image=keep_image)
    answer = partial(
        answer_batch,
        predict=partial(probabilities, forward=classifier.forward, device=device, tta=args.tta),
        classes=classifier.classes,
        topk=args.topk,
        threshold=args.threshold,
    )
    groups = batches(photos, args.batch_size)
    first, second = next(groups, []), next(groups, [])
    groups = chain([first, second] if second else [first], groups)
    if device.type == "cpu" and second:
        yield from by_batch(groups, read, answer, args.workers)
        return
    with ThreadPoolExecutor(args.workers) as pool:  # decodes while the device computes
        decoded = in_order(pool, read, chain.from_iterable(groups), ahead=2 * args.batch_size)
        for batch in batches(decoded, args.batch_size):
            yield from answer(batch)


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


def score_photos(classifier: Classifier, photos: Iterable[Photo], device) -> Score:
    """The score over photos in class folders, for other programs."""
    score = Score(classifier.classes)
    settings = default_settings(topk=1)
    for answer in answer_photos(photos, classifier, settings, device, keep_image=False):
        score.write(answer)
    return score
