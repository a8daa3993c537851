"""A tiny model behind the real server, at a loopback port of this process."""

import contextlib
import http.client
import io
import json
import socket
import threading
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from formats.checkpoints import checkpoint_facts, save_checkpoint
from imaging.preprocess import Preprocess
from serving.desk import Desk, Limits
from serving.models import Served, open_models
from serving.server import Server
from vit_model import create_model

CLASSES = ["daisy", "roses", "tulips"]
METRICS = {"val_acc": 0.8125, "val_low": 0.75, "val_high": 0.875, "val_photos": 128}
OURS, THEIRS = "classroom.test", "evil.test"  # names that the browser is told point here


def write_checkpoint(path: Path, seed=0, classes=CLASSES, learned=True, **config) -> Path:
    """Writes a checkpoint of an untrained KAN-ViT whose answers depend on the photo.

    learned: whether its splines are not as they start.
    """
    torch.manual_seed(seed)
    sizes = {"mlp": "kan", "kan_rank": 3} | config
    model = create_model("vit_micro_patch8_64", num_classes=len(classes), **sizes)
    torch.nn.init.normal_(model.head.weight, std=1.0)
    for name, parameter in model.named_parameters():
        if learned and "spline" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    facts = checkpoint_facts(model, list(classes), Preprocess(img_size=64), 3, METRICS)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(path, {"model": model.state_dict()} | facts)
    return path


def photo(seed=0, size=(90, 70), kind="JPEG") -> bytes:
    noise = np.random.default_rng(seed).integers(0, 255, (7, 9, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize(size).save(file, kind)
    return file.getvalue()


def form(
    content: bytes, name: str | bytes | None = "photo.jpg", field="file"
) -> tuple[dict, bytes]:
    """Headers and body of a form with one file."""
    name = name.encode() if isinstance(name, str) else name
    told = b"" if name is None else b'; filename="' + name + b'"'
    head = b'--edge\r\nContent-Disposition: form-data; name="' + field.encode() + b'"' + told
    body = head + b"\r\nContent-Type: image/jpeg\r\n\r\n" + content + b"\r\n--edge--\r\n"
    return {"Content-Type": "multipart/form-data; boundary=edge"}, body


class Client:
    """Asks a server; each request is a connection of its own."""

    def __init__(self, server: Server) -> None:
        self.server, self.port = server, server.server_address[1]

    def __call__(self, method: str, place: str, body: bytes | None = None, headers=None):
        """Returns the status, the answer (from JSON, if it is that) and its headers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, place, body, headers or {})
            answer = connection.getresponse()
            content = answer.read()
            if answer.headers["Content-Type"] == "application/json" and content:
                content = json.loads(content)
            return answer.status, content, answer.headers

    def predict(self, content: bytes, **headers):
        return self("POST", "/predict", content, headers)[:2]

    def raw(self, *blocks: bytes) -> bytes:
        """Sends bytes as they are and returns all that comes back."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            for block in blocks:
                connection.sendall(block)
            return b"".join(iter(lambda: connection.recv(65536), b""))


@contextlib.contextmanager
def serving(models, hosts=(), **limits):
    """Gives a Client of a server with these models."""
    with Server(("127.0.0.1", 0), Desk(models, Limits(**limits), 2), hosts) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield Client(server)
        finally:
            server.shutdown()
            thread.join()


def opened(*paths: Path) -> list[Served]:
    return open_models(list(map(str, paths)), None, torch.device("cpu"))
