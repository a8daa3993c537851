"""From the bytes of a photo to an answer, with bounds on how many are asked at once.

A few threads decode, with the loader that training and predict.py have, from memory; one computes
(`worker`). Nothing is written anywhere, and no more of a photo is kept than its answer needs.
"""

import contextlib
import io
import os
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from imaging.decoding import PhotoError, load_image, open_photo
from predicting.inputs import Photo
from predicting.predictor import Decoded, decode
from predicting.writers import Answer
from serving.explanations import Question, explanations, jpeg, shown
from serving.models import Served
from serving.worker import Worker
from system.devices import default_workers
from system.terminal import one_line

PREVIEW = 1280  # pixels of a picture's longer side


@dataclass(frozen=True)
class Limits:
    """What one request, and all at once, may cost; times in seconds."""

    body_bytes: int = 32 * 2**20
    pixels: int = 120_000_000  # of a photo: more than telephones take, and a few at a time fit
    requests: int = 64  # photos at once, those that wait for the model among them
    connections: int = 256  # each is a thread; browsers hold some open without a word
    idle: float = 15.0  # of a connection without a request
    head: float = 10.0  # until a request has said what it wants
    body: float = 30.0  # until its photo is here
    answer: float = 60.0  # until the model has answered
    batch: int = 16


class Busy(Exception):
    """Too many ask at once: a moment later there is room again."""


class NoPhoto(Exception):
    """What was sent cannot be answered: the reason, as predict.py tells it."""


@dataclass
class Desk:
    """The models and who works for them. decoders: threads that decode."""

    models: Sequence[Served]
    limits: Limits = field(default_factory=Limits)
    decoders: int = field(default_factory=default_workers)

    def __post_init__(self) -> None:
        self.room = threading.BoundedSemaphore(self.limits.requests)
        self.pool = ThreadPoolExecutor(self.decoders, "decoder")
        self.worker = Worker()

    def close(self) -> None:
        self.pool.shutdown(wait=False, cancel_futures=True)
        self.worker.close()

    def model(self, name: str | None) -> Served | None:
        """Returns the model of that name, the first without one; None where there is none."""
        named = (one for one in self.models if name in (None, one.name))
        return next(named, None)

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """Holds room for one photo. Raises Busy where there is none."""
        if not self.room.acquire(blocking=False):
            raise Busy
        try:
            yield
        finally:
            self.room.release()

    def predict(self, served: Served, name: str | None, body: bytes) -> Answer:
        """Returns the model's answer for a photo; raises NoPhoto, or Busy where it takes long."""
        decoded = self._decoded(served, name, body)
        answer = self._result(self.worker.submit(served.answers, decoded, self.limits.batch))
        if answer.error:
            raise NoPhoto(answer.error)
        return answer

    def explain(
        self, served: Served, body: bytes, index: int | None = None, near: bool = False
    ) -> dict:
        """Returns why the model answers so for a class, by default the best: see `explanations`.

        near: whether the training photos most like it are shown, too.
        """
        question = Question(self._decoded(served, None, body, keep_image=True), index, near)
        why = self._result(self.worker.submit(partial(explanations, served), question))
        if not near:
            return why.told
        return why.told | {"near": self._result(self.pool.submit(list, map(shown, why.near)))}

    def preview(self, body: bytes) -> bytes:
        """Returns a photo of any format as a JPEG that every browser shows."""
        return self._result(self.pool.submit(self._preview, body))

    def _decoded(self, served: Served, name: str | None, body: bytes, keep_image=False) -> Decoded:
        return self._result(self.pool.submit(self._decode, served, name, body, keep_image))

    def _decode(self, served: Served, name: str | None, body: bytes, keep_image: bool) -> Decoded:
        self._check_pixels(body)
        decoded = decode(Photo(name, source=io.BytesIO(body)), served.transform, keep_image)
        if decoded.tensor is None:
            raise NoPhoto(decoded.photo.error)
        return decoded

    def _preview(self, body: bytes) -> bytes:
        self._check_pixels(body)
        try:
            image = load_image(io.BytesIO(body), PREVIEW)
        except PhotoError as error:
            raise NoPhoto(error.reason) from None
        return jpeg(image, PREVIEW)

    def _check_pixels(self, body: bytes) -> None:
        """Raises NoPhoto for a picture that claims too many; what is none is told by `decode`."""
        try:
            with open_photo(io.BytesIO(body)) as image:
                width, height = image.size
        except Exception:  # a damaged file can make a decoder raise anything at all
            return
        if width * height > self.limits.pixels:
            most = f"{self.limits.pixels / 1e6:.0f} million"
            raise NoPhoto(f"too large: {width} x {height} pixels, where {most} are taken")

    def _result(self, coming: Future):
        try:
            return coming.result(self.limits.answer)
        except TimeoutError:
            coming.cancel()
            raise Busy from None


def report(error: BaseException) -> None:
    """Tells the terminal of a fault of ours, in a sentence."""
    if os.environ.get("KAN_VIT_TRACEBACK"):
        traceback.print_exception(error)
    print(f"error: {type(error).__name__}: {one_line(error)}", file=sys.stderr, flush=True)
