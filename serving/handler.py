"""What can be asked of the server: docs/serving.md tells of each address."""

import contextlib
from collections.abc import Iterator
from functools import cache
from http import HTTPStatus
from importlib.resources import files
from pathlib import Path

from predicting.writers import as_record
from serving.connection import Connection, Refused
from serving.desk import Busy, Desk, NoPhoto
from serving.gate import is_loopback
from serving.models import Served
from serving.uploads import BadUpload, uploaded
from system.terminal import listed

START = "/index.html"
WHY_NOT = "an exported file shows no attention, and an ensemble is several models"
KINDS = {".js": "text/javascript", ".css": "text/css", ".html": "text/html"}


@cache
def page_files() -> dict[str, tuple[str, bytes]]:
    """Returns the page's files by their addresses: their types and what they hold."""
    found = [*(files("serving") / "page").iterdir(), files("reporting") / "colours.css"]
    kinds = {one: KINDS.get(Path(one.name).suffix) for one in found}
    return {
        f"/{one.name}": (f"{kind}; charset=utf-8", one.read_bytes())
        for one, kind in kinds.items()
        if kind
    }


class Handler(Connection):
    """The page, /health, /models; photos to /predict, /explain and /preview."""

    @property
    def desk(self) -> Desk:
        return self.server.desk

    def page(self) -> None:
        self.reply(*page_files()[START if self.place == "/" else self.place])

    def health(self) -> None:
        self.reply_json({"status": "ok", "models": [one.name for one in self.desk.models]})

    def models(self) -> None:
        self.reply_json([one.told for one in self.desk.models])

    def predict(self) -> None:
        served = self.served()
        with self.photo() as (name, photo):
            answer = self.desk.predict(served, name, photo)
        self.reply_json(as_record(answer))

    def explain(self) -> None:
        served = self.served()
        if not served.explains:
            raise Refused(HTTPStatus.NOT_FOUND, f"{served.name} cannot be explained: {WHY_NOT}")
        index, count = self.query.get("index"), len(served.predictor.classes)
        whole = index is not None and index.isdecimal() and len(index) < 10  # int() has a limit
        if index is not None and not (whole and int(index) < count):
            raise Refused(HTTPStatus.NOT_FOUND, f"index must be a class's, 0 to {count - 1}")
        with self.photo() as (_, photo):
            why = self.desk.explain(
                served, photo, None if index is None else int(index), self.sees_training_photos()
            )
        self.reply_json(why)

    def sees_training_photos(self) -> bool:
        """Whether who asks sits at this machine, by a name of it that no other machine has.

        The photos may show people who agreed to be trained on, not to be shown around.
        """
        here = is_loopback(self.client_address[0]) and is_loopback(self.host)
        return here or self.server.training_photos

    def preview(self) -> None:
        with self.photo() as (_, photo):
            picture = self.desk.preview(photo)
        self.reply("image/jpeg", picture)

    def served(self) -> Served:
        """Returns the model that is asked; raises Refused for one that there is not."""
        if served := self.desk.model(self.query.get("model")):
            return served
        names = listed([one.name for one in self.desk.models])
        raise Refused(HTTPStatus.NOT_FOUND, f"there is no such model; there is {names}")

    @contextlib.contextmanager
    def photo(self) -> Iterator[tuple[str | None, bytes]]:
        """Gives the photo that was sent and its own name; what becomes of it may be refused."""
        name = None
        try:
            with self.desk.place():
                name, photo = uploaded(self.headers.get("Content-Type", ""), self.body())
                yield name, photo
        except Busy:
            again = {"Retry-After": "1"}
            sentence = "many are asking at once: try again in a moment"
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, sentence, again) from None
        except BadUpload as error:
            raise Refused(HTTPStatus.BAD_REQUEST, str(error)) from None
        except NoPhoto as error:
            raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, str(error), image=name) from None

    routes = {  # noqa: RUF012 (never changed)
        "GET": dict.fromkeys(["/", *page_files()], page) | {"/health": health, "/models": models},
        "POST": {"/predict": predict, "/explain": explain, "/preview": preview},
    }
