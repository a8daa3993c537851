"""The options of train.py: one row each; those on data and model stand in `model_flags`.

From the table come the parser, the help, the checks, what a resumed run keeps and args.json: see
`system.flags`. What is None was not set: it is chosen for the case at hand (choices.py), printed
with its reason, and kept in `settled`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from formats.finding import weights_name
from system.flags import (
    DEVICES,
    Row,
    Section,
    flag_of,
    gives,
    needs_flag,
    number,
    number_or,
    on_off,
    parse,
)
from training import needs
from training.model_flags import DATA, FREE, JUDGES, DataAndModel

TRAINING = Section("training")
REGULAR = Section("augmentation and regularisation")
MACHINE = Section("machine")
RUN = Section("the run")


@dataclass(frozen=True)
class Options(DataAndModel):
    """What a command line of train.py says, or a run that it began."""

    epochs: int = TRAINING.row(
        10, "0 only evaluates the start", type=number(int, 0), metavar="N", **FREE
    )
    batch_size: int | str | None = TRAINING.row(
        None,
        "photos per step and process; auto tries how many fit into memory (default: chosen)",
        type=number_or(("auto",), number(int, 1)),
        metavar="N|auto",
        **JUDGES,
    )
    accum_steps: int = TRAINING.row(1, "batches per update", type=number(int, 1), metavar="N")
    opt: str = TRAINING.row("adamw", "optimiser", choices=("sgd", "adamw"))
    lr: float | None = TRAINING.row(
        None,
        "peak learning rate, used as given (default: chosen, grows with the total batch)",
        type=number(float, 0),
        metavar="X",
    )
    lrf: float = TRAINING.row(
        0.01,
        "final rate as a share of --lr, on a cosine",
        type=number(float, 0, 1),
        metavar="X",
    )
    weight_decay: float | None = TRAINING.row(
        None,
        "not on biases, norms, tokens, positions (default: chosen)",
        type=number(float, 0),
        metavar="X",
    )
    decay_all: bool = TRAINING.row(
        False,
        "weight decay on those, too, as in the reference",
        kind="pair",
    )
    warmup_epochs: float | None = TRAINING.row(
        None,
        "epochs of linear warm-up (default: chosen)",
        type=number(float, 0),
        metavar="N",
    )
    layer_decay: float | None = TRAINING.row(
        None,
        "each block's rate is X times that of the next (default: chosen)",
        type=number(float, 0, 1, open_low=True),
        metavar="X",
        needs=needs.BLOCKS,
        idle=(1.0,),
    )
    head_lr_scale: float | None = TRAINING.row(
        None,
        "the head's learning rate as a multiple of --lr (default: chosen)",
        type=number(float, 0, open_low=True),
        metavar="X",
    )
    clip_grad: float = TRAINING.row(
        1.0, "largest norm of the gradient, 0 for no limit", type=number(float, 0), metavar="X"
    )
    ema: float = TRAINING.row(
        0.0,
        "evaluate and save a moving average of the weights, e.g. 0.998; 0 for none",
        type=number(float, 0, 0.999999),
        metavar="DECAY",
    )
    patience: int = TRAINING.row(
        0,
        "stop after N epochs without a better one; 0 for never",
        type=number(int, 0),
        metavar="N",
        **FREE,
    )
    best_by: str | None = TRAINING.row(
        None,
        "what makes an epoch the best one, on validation photos: their accuracy, the mean of the "
        "classes' (balanced), their loss, or the mean probability of what they are (default: "
        "accuracy, of under 100 photos probability)",
        choices=("accuracy", "balanced", "loss", "probability"),
    )
    folds: int | None = TRAINING.row(
        None,
        "cross-validation: train N times, each without another Nth of the photos, which are judged "
        "by that model; then best.pth on all photos",
        type=number(int, 2, 100),
        metavar="N",
        needs=needs.SPLIT,
    )
    ensemble: bool = TRAINING.row(
        False,
        "keep the N models instead of one on all photos: predict.py --weights RUN takes their mean",
        kind="switch",
        needs=needs_flag("folds", "--folds N"),
    )
    teacher: str | None = TRAINING.row(
        None, "a checkpoint to distil from", type=weights_name, metavar="FILE|NAME"
    )
    teacher_weight: float = TRAINING.row(
        0.5,
        "share of the teacher in the loss",
        type=number(float, 0, 1),
        metavar="X",
        needs=needs_flag("teacher", "--teacher FILE"),
        idle=(0.0,),
    )

    aug: str | None = REGULAR.row(
        None,
        "none: as in validation; basic: random crop and flip; then TrivialAugment or RandAugment "
        "(default: chosen)",
        choices=("none", "basic", "trivial", "rand"),
    )
    reprob: float = REGULAR.row(
        0.0, "chance of random erasing", type=number(float, 0, 1), metavar="P"
    )
    mixup: float = REGULAR.row(
        0.0, "mixup's alpha, 0 for none", type=number(float, 0), metavar="ALPHA"
    )
    cutmix: float = REGULAR.row(
        0.0, "CutMix's alpha, 0 for none", type=number(float, 0), metavar="ALPHA"
    )
    label_smoothing: float | None = REGULAR.row(
        None,
        "mass moved from the label to all classes (default: chosen)",
        type=number(float, 0, 0.99),
        metavar="X",
    )
    drop_path: float = REGULAR.row(
        0.0,
        "stochastic depth of the last block, less before it",
        type=number(float, 0, 0.99),
        metavar="P",
    )
    class_weights: str = REGULAR.row(
        "none", "balanced: rare classes weigh more", choices=("none", "balanced")
    )

    device: str = MACHINE.row("auto", DEVICES, metavar="NAME", **FREE, **JUDGES)
    amp: str = MACHINE.row(
        "auto",
        "mixed precision; auto: bf16 where the hardware has it, fp16 on older CUDA",
        choices=("auto", "off", "bf16", "fp16"),
    )
    cache_views: int = MACHINE.row(
        1,
        "views of each photo for which the frozen layers run, once; with more than one, photos "
        "are augmented",
        type=number(int, 1, 1000),
        metavar="N",
        needs=needs.VIEWS,
        idle=(1,),
    )
    cache_images: str = MACHINE.row(
        "auto",
        "decode each photo once and keep its pixels: in memory, in a file in the run's folder, or "
        "not; auto: in memory if a quarter of what is free holds them",
        choices=("auto", "ram", "disk", "off"),
        **FREE,
    )
    compile: bool = MACHINE.row(False, "compile the model first", kind="switch")
    deterministic: bool = MACHINE.row(
        False,
        "on a GPU: the same bits in every run, somewhat slower (a CPU repeats itself anyway)",
        kind="switch",
        **FREE,
        **JUDGES,
    )
    grad_checkpointing: bool = MACHINE.row(
        False,
        "save memory by computing activations again",
        "--grad-checkpointing",
        "--grad-checkpoint",
        kind="maybe",
        type=on_off,
        metavar="true|false",
        **FREE,
    )
    fsdp: bool = MACHINE.row(
        False,
        "with several processes (torchrun): cut the model into shards instead of copying it to "
        "each device",
        kind="pair",
        **FREE,
    )
    workers: int | None = MACHINE.row(
        None,
        "processes that decode photos (default: cores, at most 8)",
        "-j",
        "--workers",
        type=number(int, 0, 256),
        metavar="N",
        **FREE,
        **JUDGES,
    )
    seed: int = MACHINE.row(
        0,
        "of split, weights and augmentation",
        type=number(int, 0, 2**32 - 1),
        metavar="N",
        **JUDGES,
    )

    output: str | None = RUN.row(
        None,
        "where the run is written (default: weights/<model>-<data>-<n>)",
        metavar="DIR",
        **FREE,
    )
    resume: str | None = RUN.row(
        None,
        "continue the run in DIR, or the newest one under weights/",
        kind="maybe",
        const="newest",
        metavar="DIR",
        **FREE,
    )
    save_adapter: bool = RUN.row(
        False,
        "write adapter.safetensors as well, what was trained alone, which needs the file of "
        "--weights to predict; last.pth is kept as small",
        kind="switch",
        needs=needs.FROZEN,
    )
    save_steps: int = RUN.row(
        0,
        "write last.pth every N updates as well as after each epoch; 0: epochs only",
        type=number(int, 0),
        metavar="N",
        **FREE,
    )
    eval: bool = RUN.row(False, "evaluate --weights on the data and stop", kind="switch", **JUDGES)
    dry_run: bool = RUN.row(
        False,
        "check data and weights, print what would happen, train and write nothing",
        kind="switch",
    )

    @property
    def frozen(self) -> bool:
        """Whether what came from the weights file stays as it is."""
        return bool(self.weights) if self.freeze_layers is None else self.freeze_layers

    @property
    def new(self) -> bool:
        """Whether a run begins, rather than goes on or is judged."""
        return not self.resume and not self.eval

    @property
    def random(self) -> bool:
        """Whether photos change at random from epoch to epoch, as far as that is said."""
        return self.aug not in (None, "none") or self.reprob > 0

    @property
    def data_roots(self) -> list[str]:
        """The folders of photos, into which nothing is ever written."""
        return [path for path in (self.data_path, self.val_path, self.test_path) if path]

    def to_dict(self) -> dict:
        """Plain Python, as args.json and last.pth keep it."""
        return {named.name: getattr(self, named.name) for named, _ in self.rows()}

    @classmethod
    def from_dict(cls, saved: Mapping) -> "Options":
        """The options of a run that was saved; older runs know fewer.

        Raises ValueError, worded to follow a file's name, for a value that no flag gives.
        """
        known = {}
        for named, row in cls.rows():
            value = saved.get(named.name, named.default)
            absent = value is None and named.default is None
            if not absent and not gives(row, value):
                flag = flag_of(named.name)
                raise ValueError(f"has {flag} {value!r:.80}, which that flag does not take")
            known[named.name] = value
        return cls(**known)

    def settled(self, **values) -> "Options":
        """These options with what was not set, or not yet exact: paths, numbers, choices."""
        return replace(self, **values)

    def check(self) -> None:
        if sentence := needs.contradiction(self):
            raise ValueError(sentence)

    def in_force(self, row: Row) -> bool:
        """A run that goes on has had its flags checked; --eval asks few of them."""
        return not self.resume and (not self.eval or _judges(row))

    def without_effect(self) -> list[str]:
        """The typed flags that --eval does not ask, for it trains nothing."""
        unasked = {named.name for named, row in self.rows() if not _judges(row)}
        if self.batch_size == "auto":
            unasked.add("batch_size")
        return [flag_of(name) for name in sorted(unasked & self.given)]


def _judges(row: Row) -> bool:
    return row.section == DATA.title or row.facts.get("judges", False)


def parse_args(argv: Sequence[str] | None = None) -> Options:
    """Returns the options of train.py."""
    return parse(
        Options,
        argv,
        prog="train.py",
        description="Fine-tune a Vision Transformer, with MLP or KAN blocks, on a folder of class "
        "folders of photos.",
        epilog="Values marked 'chosen' depend on the case (head only or all layers, pretrained or "
        "not, size of the data) and are printed with their reason.",
    )


def kept() -> set[str]:
    """The names of options that a resumed run keeps."""
    return {named.name for named, row in Options.rows() if row.facts.get("keep", True)}
