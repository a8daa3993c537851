"""A page to drop photos on: your model for the people beside you, from this machine, offline.

    python serve.py                              # the newest best.pth under weights/
    python serve.py --weights weights/a/best.pth weights/b/best.pth    # to choose from
    python serve.py --host 0.0.0.0 --cert cert.pem --key key.pem       # for the classroom, https
    curl -F file=@photo.jpg http://localhost:8000/predict              # for programs

docs/serving.md tells what can be asked of it, and what to beware of. Ctrl-C ends it.
"""

import argparse
import errno
import os
import socket
import ssl
import sys
import webbrowser
from collections.abc import Sequence
from dataclasses import dataclass, replace

from formats.finding import weights_name
from formats.known import UNKNOWN_SHARE
from predicting.classifier import newest_checkpoint, require_telling
from serving.desk import Desk, Limits
from serving.gate import host_of, is_loopback
from serving.models import Served, open_models
from serving.server import Server, free_port
from system.devices import pick_device
from system.flags import DEVICES, Given, Section, existing, needs_flag, number, parse
from system.terminal import run_cli

MODEL, ANSWERS, NETWORK = Section("model"), Section("answers"), Section("network")
MAX_MB = Limits.body_bytes >> 20
EVERYWHERE = {"0.0.0.0", "::"}


def machine_name(text: str) -> str:
    """Returns `text` where it is a name as in an address; the parser of a flag."""
    if host_of(text) != text.lower():
        raise argparse.ArgumentTypeError(f"{text!r} is no name of a machine such as room5.local")
    return text


@dataclass(frozen=True)
class Options(Given):
    """What a command line of serve.py says, a row for each flag: see `system.flags`."""

    weights: tuple[str, ...] = MODEL.row(
        (),
        "checkpoints of any format, what export.py wrote, or names to download them by; several "
        "can be chosen from on the page (default: the newest best.pth under weights/)",
        kind="list",
        type=weights_name,
        metavar="FILE|NAME",
    )
    class_indices: str | None = MODEL.row(
        None,
        "index-to-name file for weights that hold no names (default: class_indices.json)",
        type=existing,
        metavar="FILE",
    )
    device: str = MODEL.row("auto", DEVICES, metavar="NAME")
    tta: bool = ANSWERS.row(False, "average over each photo and its mirror", kind="switch")
    topk: int = ANSWERS.row(5, "classes of an answer", type=number(int, 1), metavar="K")
    threshold: float = ANSWERS.row(
        0.0,
        'below this probability the answer is "unsure"',
        type=number(float, 0, 1),
        metavar="P",
    )
    unknown: float = ANSWERS.row(
        UNKNOWN_SHARE,
        'the share of photos like those of the training set that may be called "unknown", so that '
        "unlike ones are (0: none); for models that train.py made",
        type=number(float, 0, 1),
        metavar="P",
    )
    show_training_photos: bool = ANSWERS.row(
        False,
        "show the training photos most like a photo to other machines, too, not to this one alone",
        kind="switch",
    )
    max_mb: float = ANSWERS.row(
        MAX_MB, "largest file", type=number(float, 0, 1024, open_low=True), metavar="MB"
    )
    port: int = NETWORK.row(
        8000, "port of the page; 0: any free one", type=number(int, 0, 65535), metavar="N"
    )
    host: str = NETWORK.row(
        "127.0.0.1",
        "address to listen at: 0.0.0.0 lets every machine of the network in (default: 127.0.0.1, "
        "this machine alone)",
        metavar="ADDRESS",
    )
    allow_host: tuple[str, ...] = NETWORK.row(
        (),
        "names that this machine may be called by, beside localhost and its addresses "
        "(default: none)",
        kind="list",
        type=machine_name,
        metavar="NAME",
    )
    cert: str | None = NETWORK.row(
        None, "for https: certificate in PEM", type=existing, metavar="FILE"
    )
    key: str | None = NETWORK.row(
        None,
        "its private key (default: in the certificate's file)",
        type=existing,
        metavar="FILE",
        needs=needs_flag("cert", "--cert FILE"),
    )
    no_open: bool = NETWORK.row(
        False, "do not show the page in a browser, where there is a desktop", kind="switch"
    )


def parse_args(argv: Sequence[str] | None = None) -> Options:
    return parse(
        Options,
        argv,
        prog="serve.py",
        description="Serve a page that answers for photos with a trained model.",
        epilog="Exit status: 0 ended by Ctrl-C, 2 wrong usage.",
    )


def secured(cert: str, key: str | None) -> ssl.SSLContext:
    """Returns how https is spoken with a certificate; raises ValueError for files that are none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # A key under a password would be asked for at the terminal.
        context.load_cert_chain(cert, key, password=lambda: "")
    except (ssl.SSLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        files = f"--cert {cert}" + (f" --key {key}" if key else "")
        raise ValueError(
            f"{files}: not a certificate and its key in PEM without a password ({reason})"
        ) from None
    return context


def bind(options: Options, desk: Desk) -> Server:
    """Returns the server at its address; raises ValueError where that cannot be had."""
    names = {*options.allow_host} | ({options.host} - EVERYWHERE)
    tls = secured(options.cert, options.key) if options.cert else None
    try:
        return Server((options.host, options.port), desk, names, tls, options.show_training_photos)
    except socket.gaierror:
        raise ValueError(f"--host {options.host} is no address of this machine") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            free = free_port(options.host, options.port)
            hint = f"--port {free} is free" if free else "name another with --port"
            raise ValueError(f"port {options.port} is taken; {hint}") from None
        if error.errno == errno.EACCES:
            raise ValueError(
                f"--port {options.port} needs an administrator's rights; take one above 1023"
            ) from None
        reason = error.strerror or error
        raise ValueError(f"--host {options.host} cannot be listened at: {reason}") from None


def addresses(options: Options, port: int) -> list[str]:
    """Returns where the page is to be opened, this machine's way first."""
    scheme = "https" if options.cert else "http"
    hosts = [options.host]
    if options.host in EVERYWHERE:
        hosts = ["localhost", *own_addresses()]
    elif is_loopback(options.host):
        hosts = ["localhost" if options.host == "127.0.0.1" else options.host]
    shown = [f"[{host}]" if ":" in host else host for host in [*hosts, *options.allow_host]]
    return [f"{scheme}://{host}:{port}/" for host in shown]


def own_addresses() -> list[str]:
    """Returns the address by which this machine reaches others; nothing is sent for it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # set aside for documents: nobody's (RFC 5737)
            return [probe.getsockname()[0]]
        except OSError:
            return []


def warnings(options: Options) -> list[str]:
    """Returns what whoever serves beyond this machine should know."""
    if is_loopback(options.host):
        return []
    lines = [f"warning: --host {options.host} lets everyone on this network use this page"]
    if not options.cert:
        lines.append(
            "warning: without --cert, photos travel unencrypted and no browser opens the camera"
        )
    return lines


def has_desktop() -> bool:
    """Whether a browser can be shown to the one who typed the command."""
    screen = os.name == "nt" or sys.platform == "darwin"
    screen = screen or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
    return sys.stdout.isatty() and screen


def announce(options: Options, paths: Sequence[str], models: Sequence[Served], port: int) -> None:
    for path, served in zip(paths, models, strict=True):
        classifier = served.predictor.classifier
        notes = [*classifier.notes, *filter(None, [served.nearest.note])]
        print(f"{served.name}: {classifier.title} ({path})", *notes, sep="\n  ")
    print(*warnings(options), sep="\n", end="\n" * bool(warnings(options)), file=sys.stderr)
    places = addresses(options, port)
    print(f"\nthe page: {'  '.join(places)}   (Ctrl-C ends it)", flush=True)
    if has_desktop() and not options.no_open:
        webbrowser.open(places[0])


def main() -> int:
    options = parse_args()
    paths, device = options.weights or [newest_checkpoint()], pick_device(options.device)
    desk = Desk([], replace(Limits(), body_bytes=int(options.max_mb * 2**20)))
    with bind(options, desk) as server:  # before models are opened, which may take a while
        desk.models = models = open_models(
            paths,
            options.class_indices,
            device,
            tta=options.tta,
            topk=options.topk,
            threshold=options.threshold,
            unknown=options.unknown,
        )
        if "unknown" in options.given:
            classifiers = [served.predictor.classifier for served in models]
            require_telling(options.unknown, dict(zip(paths, classifiers, strict=True)))
        announce(options, paths, models, server.server_address[1])
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("ended")
    return 0


if __name__ == "__main__":
    run_cli(main)
