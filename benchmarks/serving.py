"""What serve.py adds to the model: requests lost, latency, throughput and memory beside it alone.

    python -m benchmarks.serving --data flower_photos --weights best.pth

Starts serve.py in a process of its own and asks it from several clients at once, each with one
photo after the other over one connection; in turns with it, the bare model computes batches that
are decoded already. Latency is from the first byte sent to the last received. A request is lost
where it has no answer, or not that of its photo; 503 is asked again, and counted.
"""

import argparse
import http.client
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import torch

import serve
from benchmarks.predict_throughput import bare_rate
from predicting.inputs import find_photos
from predicting.predictor import Predictor

PROGRAM = str(Path(serve.__file__).resolve())
CLOSE = 1e-3  # a photo's probability in batches of other sizes


@dataclass
class Round:
    """What the clients met in one round."""

    latencies: list[float] = field(default_factory=list)
    lost: int = 0
    again: int = 0  # answers of 503
    seconds: float = 0.0


class Server:
    """serve.py in a process of its own."""

    def __init__(self, weights: str, device: str) -> None:
        words = [PROGRAM, "--weights", weights, "--device", device, "--port", "0", "--no-open"]
        self.process = subprocess.Popen(
            [sys.executable, "-u", *words], stdout=subprocess.PIPE, encoding="utf-8"
        )
        for line in self.process.stdout:
            if found := re.search(r"http://localhost:(\d+)/", line):
                self.port = int(found[1])
                return
        raise RuntimeError("serve.py did not start")

    def memory(self) -> float:
        """MiB that the process holds now."""
        text = Path(f"/proc/{self.process.pid}/status").read_text("utf-8")
        return int(re.search(r"VmRSS:\s*(\d+)", text)[1]) / 1024

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


def ask(connection: http.client.HTTPConnection, photo: bytes, result: Round) -> dict | None:
    """One photo's predictions by class; None where there is no answer."""
    while True:
        start = time.perf_counter()
        connection.request("POST", "/predict", photo)
        answer = connection.getresponse()
        content = answer.read()
        result.latencies.append(time.perf_counter() - start)
        if answer.status != 503:
            break
        result.again += 1
        time.sleep(0.1)
    if answer.status != 200:
        return None
    return {one["index"]: one["probability"] for one in json.loads(content)["predictions"]}


def is_close(told: dict | None, expected: dict) -> bool:
    return told is not None and all(
        abs(told.get(index, 0) - probability) < CLOSE for index, probability in expected.items()
    )


def one_round(port: int, photos: list[bytes], expected: list[dict], options) -> Round:
    """Lets the clients ask; request number n is about photo n modulo how many there are."""
    result, lock = Round(), threading.Lock()
    numbers = iter(range(options.requests))

    def work() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            place = number % len(photos)
            try:
                told = ask(connection, photos[place], result)
            except (OSError, http.client.HTTPException):
                told = None
                connection.close()
            if not is_close(told, expected[place]):
                with lock:
                    result.lost += 1

    threads = [threading.Thread(target=work) for _ in range(options.clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    result.seconds = time.perf_counter() - start
    return result


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def compare(options: argparse.Namespace) -> None:
    paths = [photo.path for photo in islice(find_photos([options.data]), options.photos)]
    photos = [Path(path).read_bytes() for path in paths]
    predictor = Predictor(options.weights, device=options.device, topk=5)
    records = predictor(paths)
    expected = [{p["index"]: p["probability"] for p in r["predictions"]} for r in records]
    size = predictor.classifier.preprocess.img_size
    images = torch.rand(16, 3, size, size)
    server = Server(options.weights, options.device)
    bare, rounds, memory = [], [], []
    try:
        one_round(server.port, photos, expected, options)  # warms both sides
        bare_rate(predictor, images, options.requests)
        memory.append(server.memory())
        for _ in range(options.rounds):
            bare.append(bare_rate(predictor, images, options.requests))
            rounds.append(one_round(server.port, photos, expected, options))
            memory.append(server.memory())
    finally:
        server.stop()
    show(options, bare, rounds, memory)


def show(options, bare: list[float], rounds: list[Round], memory: list[float]) -> None:
    load = f"{options.clients} clients, {options.requests} requests a round"
    print(f"{load}, {options.rounds} rounds after one not counted; median (lowest to highest)")
    rates = [options.requests / one.seconds for one in rounds]
    print(f"  model alone, photos a second   {spread(bare)}")
    print(f"  serve.py, photos a second      {spread(rates)}")
    ratios = [rate / alone for rate, alone in zip(rates, bare, strict=True)]
    print(f"  ratio                          {statistics.median(ratios):.2f}")
    latencies = sorted(value for one in rounds for value in one.latencies)
    cuts = [1000 * latencies[int(share * (len(latencies) - 1))] for share in (0.5, 0.95, 0.99, 1)]
    print("  latency, ms: half, 95 %, 99 %, all below  " + ", ".join(f"{cut:.0f}" for cut in cuts))
    lost, again = sum(one.lost for one in rounds), sum(one.again for one in rounds)
    print(f"  lost {lost} of {options.requests * len(rounds)}; told to try again {again}")
    print("  memory of serve.py, MiB, after each round  " + ", ".join(f"{m:.0f}" for m in memory))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, metavar="DIR", help="any folder of photos")
    parser.add_argument("--weights", required=True, metavar="FILE")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--requests", type=int, default=1000, help="in a round (1000)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--photos", type=int, default=100, help="different ones (100)")
    options = parser.parse_args()
    print(
        f"{platform.platform()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"Python {platform.python_version()}, torch {torch.__version__}"
    )
    compare(options)


if __name__ == "__main__":
    main()
