"""What a run leaves for people: sample and result pictures, report.html, TensorBoard's copies."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from imaging.decoding import PhotoError, load_image
from imaging.preprocess import eval_transform
from reporting.calibration import reliability
from reporting.confusion import plot_confusion
from reporting.grids import answer_title, confused_grid, image_grid
from reporting.metrics import (
    ConfusedPair,
    class_lines,
    confused_pairs,
    confusion_matrix,
    most_confused,
    worst_mistakes,
)
from reporting.page import write_report
from reporting.plots import plot_curves
from reporting.suspects_page import PAGE as SUSPECTS_PAGE
from system.flags import flag_of
from system.fonts import font_advice
from system.terminal import command, counted, printable
from training import advice, feature_cache
from training.assembly import photo_loaders
from training.conclusion import RESULTS, Answers, Conclusion, said
from training.folds import TABLE
from training.run_folder import RunLog
from training.setup import Run
from training.suspects import TABLE as SUSPECTS
from training.suspects import Suspects
from vit_model import kind_of

SAMPLES = 12


def show_start(run: Run, log: RunLog) -> None:
    """Draws some training photos as the model sees them, and notes the configuration."""
    loader, _ = photo_loaders(run)
    dataset, sampler = loader.dataset, loader.sampler
    keys = [key for key, _ in zip(sampler, range(SAMPLES), strict=False)]
    batch = dataset.collate_fn(dataset.__getitems__(keys))
    if len(batch.images):
        images = loader.on_device(batch).images.cpu()
        titles = [run.data.classes[label] for label in batch.labels]
        preprocess, path = run.preprocess, run.folder / "samples.jpg"
        image_grid(images, titles, path, preprocess.mean, preprocess.std)
        log.picture("samples", path)
    log.text("settings", [f"{name}: {value}" for name, value in run.settings.items()])
    log.text("data", run.data.report.text().splitlines())


def write_results(run: Run, log: RunLog, found: Conclusion) -> None:
    """Writes pictures and report, and prints what the run has come to."""
    folder, classes, val = run.folder, run.data.classes, found.val
    matrix = confusion_matrix(val.labels, val.predicted, len(classes))
    answers = val.paths, val.labels, val.probabilities, classes
    mistakes, confused = worst_mistakes(*answers), confused_pairs(*answers)
    chosen = {"best": run.position.best.get("epoch"), "worth": val.accuracy.worth}
    draw_plots(run, log, matrix, chosen)
    draw_photos(run, log, mistakes, confused)
    judged = found.judged
    suspects = Suspects.of(run, val) if run.options.folds else None
    if suspects:
        suspects.write()
    write_report(
        folder,
        title=f"{run.model.name} on {Path(run.options.data_path).name}",
        summary=summary(run, found),
        notes=said(found, run.position.best, len(run.data.excluded)),
        calibration=[
            (f"at temperature {t:.3g}", reliability(judged.at(t), judged.labels))
            for t in (1.0, found.temperature)
        ],
        classes=classes,
        matrix=matrix,
        rows=run.position.history,
        mistakes=mistakes,
        settings=settings(run),
        data_lines=(folder / "data_report.txt").read_text("utf-8").splitlines()[:40],
        commands=commands(run, suspects),
        reading=run.preprocess.reading,
        suspects=suspects.told if suspects else "",
        confused=confused,
        **chosen,
    )
    feature_cache.remove(folder)
    tell(run, found, matrix, suspects)


def tell(run: Run, found: Conclusion, matrix, suspects: Suspects | None) -> None:
    """Prints what a run has come to, where it lies and what to type next."""
    folder, classes = run.folder, run.data.classes
    confused = most_confused(matrix, classes, 3)
    print(*said(found, run.position.best, len(run.data.excluded)), sep="\n")
    about_fonts = font_advice(classes)
    if about_fonts:
        print(about_fonts)
    if confused:
        pairs = "; ".join(
            f"{true} taken for {said} {counted(n, 'time')}" for true, said, n in confused
        )
        print(f"most confused: {printable(pairs)}")
    models = "best.pth, last.pth, features.npz, metrics.csv"
    if run.options.folds:
        models = f"{'fold<k>/' * run.options.ensemble}best.pth, {TABLE}, {SUSPECTS}"
    print(f"written to {folder}/: {models}, {RESULTS}, report.html and more")
    if suspects:
        print(f"{suspects.told}: see {folder / SUSPECTS_PAGE}")
    for what, line in commands(run, suspects):
        print(f"{what}: {line}")


def draw_plots(run: Run, log: RunLog, matrix, chosen: dict) -> None:
    """Draws the run's plots and puts them, with the table of classes, into TensorBoard."""
    folder, classes = run.folder, run.data.classes
    if run.position.history:
        plot_curves(run.position.history, folder / "curves.png", **chosen)
        log.picture("curves", folder / "curves.png")
    plot_confusion(matrix, classes, folder / "confusion.png")
    log.picture("confusion", folder / "confusion.png")
    log.text("classes", class_lines(matrix, classes))


def draw_photos(
    run: Run, log: RunLog, mistakes: list[dict], confused: Sequence[ConfusedPair]
) -> None:
    """Draws the photos of mistakes and of confused classes as the model sees them."""
    transform = eval_transform(run.preprocess, as_bytes=True)
    sides = [one for pair in confused for side in pair.photos for one in side]
    images = {}
    for path in {one["path"]: None for one in [*mistakes, *sides]}:
        with contextlib.suppress(PhotoError):  # gone or changed since
            images[path] = transform(load_image(path, transform.min_size, transform.reading))
    mistakes = [one for one in mistakes if one["path"] in images]
    if mistakes:
        titles = [answer_title(one) for one in mistakes]
        path = run.folder / "mistakes.jpg"
        image_grid([images[one["path"]] for one in mistakes], titles, path, columns=6)
        log.picture("mistakes", path)
    if any(one["path"] in images for one in sides):
        confused_grid(confused, images, run.folder / "confused.jpg")
        log.picture("confused", run.folder / "confused.jpg")


def summary(run: Run, found: Conclusion) -> list[tuple[str, object]]:
    """Returns (label, value) of what matters most about a run."""
    model, rows = run.model, run.position.history
    kan = kind_of(model.config, ", ", " blocks")
    count = sum(p.numel() for p in model.parameters())
    tested = [("test accuracy", interval(found.test))] if found.test else []
    best = run.position.best.get("epoch", "of each fold")
    return [
        *tested,
        (found.kind, interval(found.val)),
        ("validation loss", f"{found.val.loss:.4f}"),
        ("best epoch", f"{best} of {len(rows)}" if rows else best),
        ("model", f"{model.name}{kan}, {count / 1e6:.2f} M parameters"),
        ("photos", f"{len(run.data.train.paths)} + {len(run.data.val.paths)}"),
        ("training time", f"{sum(row['seconds'] for row in rows):.0f} s on {run.device}"),
    ]


def interval(answers: Answers) -> str:
    told = answers.accuracy
    return f"{told.share:.4f} ({told.low:.3f} to {told.high:.3f})"


def settings(run: Run) -> list[tuple[str, object, str]]:
    """Returns (flag, value, why it was chosen) for every setting of a run."""
    return [
        (flag_of(name), value, run.reasons.get(name, ""))
        for name, value in run.options.to_dict().items()
        if name not in ("resume", "list_models", "eval", "dry_run")
    ]


def commands(run: Run, suspects: Suspects | None) -> list[tuple[str, str]]:
    """Returns (what it does, command line) for what a user does next."""
    folder = run.folder
    weights = folder if run.options.ensemble else folder / "best.pth"
    return [
        ("predict", command("python", "predict.py", "PHOTO", "--weights", weights)),
        ("look closer", command("tensorboard", "--logdir", folder)),
        *(suspects.commands if suspects else ()),
        *advice.next_form(run),
    ]
