"""Fine-tunes a Vision Transformer, with MLP or KAN blocks, on a folder of class folders of photos.

    python train.py --data-path flower_photos --weights deit_tiny_patch16_224.safetensors
    python train.py --data-path flower_photos --weights FILE --freeze-layers false --mlp kan
    python train.py --resume weights/deit_tiny_patch16_224-flower_photos-1

A run writes its checkpoints, metrics and report into weights/<model>-<data>-<n>/ and can be killed
at any moment and resumed bit for bit. `--help` explains every flag.

This file is the story of a run: data, weights, model, recipe, loop, results.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

from formats.adapter_file import record_of
from formats.finding import find_weights, is_name, near_weights
from formats.reading import WeightsFile, read_weights
from imaging.exclusion import Exclusion
from imaging.preprocess import Preprocess
from imaging.sample_flowers import draw_samples
from imaging.scanning import find_sides
from imaging.splitting import DataSplit, prepare_data
from parallel.launch import join_launch
from parallel.world import World
from pretrained import hub_table, load_model, model_table
from system.devices import default_workers, make_deterministic, pick_device, seed_everything
from system.downloads import fetch_flower_photos
from system.files import write_json, write_text
from system.terminal import command, run_cli
from training import advice
from training.assembly import assemble, prepare
from training.conclusion import conclude
from training.feature_cache import plan
from training.flags import Options, parse_args
from training.folds import Folds, pooled
from training.judging import judge, judged
from training.loss import Teacher, load_teacher
from training.optim import freeze
from training.position import Position
from training.ranking import is_auto, with_best_weights
from training.results import show_start, write_results
from training.resuming import (
    changed,
    check_still_there,
    first_options,
    load_state,
    moved,
    read_split,
    shared_batch,
)
from training.run_folder import (
    advice_on_disk,
    find_run,
    first_log,
    locked,
    new_run_dir,
    write_class_indices,
)
from training.setup import (
    Run,
    build_model,
    calibrate_model,
    case_of,
    check_flags,
    check_sizes,
    choose_preprocess,
    describe,
    form_of,
    photos_trained_on,
    settle,
    try_batch_sizes,
    with_photos,
)
from vit_model import create_model


def main(args: Sequence[str] | None = None) -> int:
    """Trains or evaluates as `args` say, by default the command line; returns the exit status."""
    with join_launch() as world:
        options = world.first_does(parse_args, args)
        if options.list_models:
            print(model_table(), hub_table(), sep="\n\n")
            return 0
        if options.workers is None:
            options = options.settled(workers=default_workers(world.local_size))
        seed_everything(options.seed)
        less = advice.less_to_judge if options.eval else advice.less_to_train
        with advice.on_memory(options, less):
            return evaluate_only(options, world) if options.eval else train(options, world)


def train(options: Options, world: World) -> int:
    """Trains a new run, or goes on with one; returns the exit status."""
    with ExitStack() as held:
        run = (resume if options.resume else start)(options, world, held)
        if run is None:
            return 0
        held.enter_context(advice.on_memory(options if options.resume else run.options))
        report = run.folder / "report.html"  # written last, when a run is finished
        folds = Folds.of(run) if run.options.folds else None
        if run.state is None:
            write_start(run)
        else:
            print(advice.standing(run))
            if run.over() and report.exists():
                return 0
        stepper = prepare(run)
        with first_log(run) as log:
            if log:
                report.unlink(missing_ok=True)
                if run.state is None:
                    show_start(run, log)
            trainer = assemble(run, stepper)
            stopped_by = (folds and folds.train(trainer)) or trainer.fit(log)
            if stopped_by and not run.over():
                go_on = command("python", "train.py", "--resume", run.folder)
                print(f"stopped and saved; go on with: {go_on}")
                return 128 + stopped_by
            found = folds.conclude(trainer) if folds else conclude(trainer)
            if log:
                write_results(run, log, found)
    return 0


def start(options: Options, world: World, held: ExitStack) -> Run | None:
    """Prepares a new run: data, weights, model, recipe, folder, lock. None with --dry-run."""
    device = own_device(options, world)
    check_flags(options, device)
    options = with_weights(with_data(options, world), world)
    options, data, ranked = with_best_weights(options, load_data, device, world)
    weights = load_weights(options)
    check_sizes(options, weights)
    teacher = options.teacher and load_teacher(options.teacher)
    data = data or world.first_does(load_data, options)
    model, pretrained = build_model(options, weights, data.classes)
    preprocess, lines = choose_preprocess(options, model, weights, data.ranges)
    print(*lines, sep="\n", end="\n" * bool(lines))
    teacher = teacher and Teacher(teacher.on_data(data.classes), preprocess, data.classes)
    trainable = freeze(model, pretrained if options.frozen else (), options.adapt == "bias")

    photos, chosen = len(data.train.paths), {}
    if options.batch_size == "auto":
        chosen = try_batch_sizes(options, model.to(device), device, photos, world)
    case = case_of(options, model, pretrained, trainable, data, world)
    options, reasons = settle(options, case, chosen, model)
    options.refuse_idle(trainable=trainable, skip=plan(model, trainable))
    run = Run(options, reasons, Path(), device, data, model, preprocess, trainable, teacher, world)
    print(describe(model, trainable, device, run.amp_dtype, world))
    if options.dry_run:
        return print("--dry-run: nothing was trained or written")
    model.to(device)
    if model.sizes.mlp != "mlp" and options.kan_range == "auto" and world.first:
        calibrate_model(model, data, preprocess)
    world.copy_first(list(model.state_dict().values()))
    names = options.output, model.name, options.data_path, options.data_roots
    run.folder = world.first_does(new_run_dir, *names)
    hold(run.folder, world, held, new=True)
    run.options = options.settled(output=str(run.folder))
    run.teacher = teacher and teacher.to(device)
    run.backbone = world.first_does(record_of, options.weights) if options.save_adapter else None
    before = weights.meta.get("trained_on", "") if weights else ""
    run.trained_on = world.first_does(photos_trained_on, data, before, options)
    run.ranked = ranked
    return run


def resume(options: Options, world: World, held: ExitStack) -> Run:
    """Prepares the continuation of a run; flags that would make it another run are refused."""
    folder = world.first_does(find_run, options.resume)
    hold(folder, world, held)
    state = load_state(folder)
    begun = Options.from_dict(state["args"])
    saved = changed(begun.settled(**form_of(state["config"])), options, folder)
    saved = saved.settled(kan_groups=begun.kan_groups)  # None is kept: see `assembly.make_stepper`
    batch = shared_batch(saved.batch_size, state["loader"].get("processes", 1), world.size)
    saved = saved.settled(batch_size=batch, output=str(folder))
    device = own_device(saved, world)
    first = first_options(folder, begun)
    data = moved(read_split(folder, first.data_path, state["classes"]), first, saved)
    check_still_there(data, saved)
    model = create_model(**state["config"])
    preprocess = Preprocess.from_dict(state["preprocess"])
    teacher = None
    if saved.teacher:
        teacher = load_teacher(saved.teacher).on_data(data.classes)
        teacher = Teacher(teacher, preprocess, data.classes).to(device)
    known = state.get("trained_on")
    if known is None or not begun.epochs:  # an older run, or one that has trained nothing
        known = world.first_does(with_photos, known or "", data, saved)
    return Run(
        saved,
        state["args"].get("reasons", {}),
        folder,
        device,
        data,
        model,
        preprocess,
        state["trainable"],
        teacher,
        world,
        state=state,
        position=Position.of(state, device, world),
        backbone=state.get("backbone"),
        trained_on=known,
    )


def own_device(options: Options, world: World) -> torch.device:
    """Returns the device of this process, which from now on computes as the options say."""
    if options.deterministic:
        make_deterministic()
    return world.own(pick_device(options.device))


# --- files -> data set -> weights ---------------------------------------------------------------


def with_data(options: Options, world: World) -> Options:
    """Returns the options with --data-path where the data lies, drawn or fetched if need be."""
    data_path = world.first_does(find_data, options.data_path, options.download)
    if data_path == Options.data_path and not Path(data_path).exists():
        raise FileNotFoundError(advice.WITHOUT_DATA)
    sides = find_sides(data_path, options.val_path, [], options.test_path)  # refuses other folders
    options.refuse_idle(val_folder=sides.val, test_folder=sides.test)
    return options.settled(data_path=data_path)


def with_weights(options: Options, world: World) -> Options:
    """Returns the options with --weights and --teacher as files, downloaded where named."""
    name = options.weights
    if name and not is_auto(name) and not Path(name).exists() and not is_name(name):
        raise FileNotFoundError(f"--weights {name}: there is no such file{near_weights(name)}")
    named = {"weights": name, "teacher": options.teacher}
    found = {key: str(world.first_does(find_weights, name)) for key, name in named.items() if name}
    return options.settled(**found)


def find_data(data_path: str, download: bool) -> str:
    """Returns where the data lies, once the flowers that the flags ask for are drawn or fetched."""
    if data_path == "sample":
        return str(draw_samples("sample_flowers"))
    if download and not Path(data_path).exists():
        return str(fetch_flower_photos(data_path))
    return data_path


def load_weights(options: Options) -> WeightsFile | None:
    """Reads the file that --weights names."""
    if not options.weights:
        return None
    weights = read_weights(
        options.weights, model=options.model, allow_partial=options.allow_partial
    )
    return weights.merged()  # adapters that the file has are part of what stays


def load_data(options: Options, exclude: Exclusion | None = None) -> DataSplit:
    """Scans, checks and splits the data, without what is excluded, and prints what was found."""
    if options.exclude:
        exclude = Exclusion.of_files(options.exclude)
    data = prepare_data(
        options.data_path,
        options.val_path,
        options.val_split,
        options.seed,
        options.workers,
        options.num_classes,
        test_path=options.test_path,
        test_split=options.test_split,
        group_by=options.group_by,
        exclude=exclude,
    )
    if options.folds and not options.eval:
        data = pooled(data, options.folds, options.seed)
    print(*data.report.lines(), *advice.on_data(options, data.report), sep="\n")
    return data


# --- the folder of a run ------------------------------------------------------------------------


def hold(folder: Path, world: World, held: ExitStack, new: bool = False) -> None:
    """Takes the run's lock into `held` before what the run has saved is read."""
    if world.first:
        held.enter_context(locked(folder, new))
    held.enter_context(advice_on_disk(folder))
    world.wait()  # leftovers of a killed run are cleared


def write_start(run: Run) -> None:
    """Writes what is known before the first step: arguments, split, classes, data report."""
    if not run.world.first:
        return
    write_json(run.folder / "args.json", run.settings)
    write_json(run.folder / "split.json", run.data.to_dict())
    write_text(run.folder / "data_report.txt", run.data.report.text())
    changed = write_class_indices(run.data.classes, run.folder, run.options.data_roots)
    if changed:
        print(changed)


# --- evaluation alone ---------------------------------------------------------------------------


def evaluate_only(options: Options, world: World) -> int:
    """Evaluates --weights on the validation photos of --data-path and prints the accuracy."""
    device = own_device(options, world)
    options = with_weights(with_data(options, world), world)
    if idle := options.without_effect():
        print(f"no effect with --eval, which trains nothing: {', '.join(idle)}")
    loaded = load_model(options.weights, device=device)
    data = world.first_does(judged, options, loaded.weights.meta, load_data)
    loaded = loaded.on_data(data.classes)
    print(*loaded.notes, sep="\n", end="\n" * bool(loaded.notes))
    judge(options, loaded, data, device, world)
    return 0


if __name__ == "__main__":
    run_cli(main)
