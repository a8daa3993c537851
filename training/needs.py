"""When a flag of train.py has an effect, and which flags contradict each other.

Needs are asked again as more is known: `mlp`, `trainable` (names of parameters) and `skip`
(`feature_cache.plan`) of the model, `val_folder` and `test_folder` of the data: see
`system.flags.Need`.
"""

from collections.abc import Mapping
from typing import Any

from system.flags import Need, flag_of, needs_flag
from vit_model import HEADS, is_spline

Options = Any  # training.flags.Options, whose table is made of what is defined here
Known = Mapping[str, object]


def _mlp(options: Options, known: Known) -> object:
    """What stands in the blocks, once a flag or the weights file has told."""
    return known.get("mlp") if options.mlp == "mlp" else options.mlp


def _is_kan(options: Options, known: Known) -> bool | None:
    kind = _mlp(options, known)
    return None if kind is None else kind != "mlp"


def _has_rank(options: Options, known: Known) -> bool | None:
    kind = _mlp(options, known)
    return None if kind is None else kind == "kan"


def _has_groups(options: Options, known: Known) -> bool | None:
    kind = _mlp(options, known)
    return None if kind is None else kind == "gkan"


def _splines_train(options: Options, known: Known) -> bool | None:
    if "trainable" in known:
        return any(map(is_spline, known["trainable"]))
    return False if _is_kan(options, known) is False else None


def _blocks_train(options: Options, known: Known) -> bool | None:
    if "trainable" in known:
        return not all(name.startswith(HEADS) for name in known["trainable"])
    adapted = options.adapt != "none"
    return not options.frozen or adapted or (False if _is_kan(options, known) is False else None)


def _has_lora(options: Options, known: Known) -> bool:
    return options.adapt == "lora"


def _can_adapt(options: Options, known: Known) -> bool:
    """Only what was pretrained is adapted; biases train anyway where nothing is frozen."""
    return bool(options.weights) and (options.frozen or options.adapt != "bias")


def _is_frozen(options: Options, known: Known) -> bool:
    return bool(options.weights) and options.frozen


def _keeps_views(options: Options, known: Known) -> bool | None:
    if not _is_frozen(options, known):
        return False
    return known["skip"] > 0 if "skip" in known else None


def _splits(options: Options, known: Known) -> bool:
    return not options.val_path and not known.get("val_folder")


def _splits_test(options: Options, known: Known) -> bool:
    return not options.test_path and not known.get("test_folder")


KAN = {"needs": Need("--mlp kan or gkan, or weights of a KAN-ViT", _is_kan)}
RANK = {"needs": Need("--mlp kan, or weights of such a model", _has_rank), "idle": ("full",)}
GROUPS = {"needs": Need("--mlp gkan, or weights of such a model", _has_groups)}
SPLINES = Need(
    "splines that train: --mlp kan or gkan (those in a file train with --freeze-layers false)",
    _splines_train,
)
BLOCKS = Need("blocks that train: --freeze-layers false, or --mlp kan", _blocks_train)
SPLIT = Need("data without a folder for validation (val/ or --val-path)", _splits)
TEST_SPLIT = Need("data without a folder for testing (test/ or --test-path)", _splits_test)
LORA = Need("--adapt lora", _has_lora)
FROZEN = Need("layers that stay as they are: --weights FILE, --freeze-layers true", _is_frozen)
ADAPT = Need("layers that stay as they are: --weights FILE, --freeze-layers true", _can_adapt)
VIEWS = Need(
    "frozen layers before all that trains: --weights FILE, --freeze-layers true, in the first "
    "block neither splines nor adapters",
    _keeps_views,
)
WEIGHTS = needs_flag("weights", "--weights FILE")

# With any of these, frozen layers run in every epoch: for images that are mixed or that a teacher
# looks at, and in a model that is cut into shards.
EVERY_EPOCH = "mixup", "cutmix", "teacher", "fsdp"


# --- flags that contradict each other -------------------------------------------------------------


def contradiction(options: Options) -> str | None:
    """Returns a sentence on flags that exclude each other, None where all go together."""
    rules = (_alone, _of_weights)
    if not options.eval:
        rules += (_of_training, _of_folds, _of_views)
    return next((sentence for rule in rules if (sentence := rule(options))), None)


def _alone(options: Options) -> str | None:
    """What --eval and --resume do not go with."""
    if options.eval and not options.weights:
        return "--eval needs --weights FILE, the model to evaluate"
    if options.eval and options.weights.partition(":")[0] == "auto":
        return "--weights auto chooses what to train from: --eval needs --weights FILE"
    if options.eval and options.resume:
        return "--eval and --resume exclude each other: --eval trains nothing"
    if options.eval:
        told = {f.name for f, row in options.rows() if row.facts.get("checkpoint")}
        for name in sorted(told & options.given):
            return f"{flag_of(name)} and --eval exclude each other: --weights FILE says it"
    for name in ("dry_run", "output"):
        if options.resume and name in options.given:
            return f"{flag_of(name)} and --resume exclude each other: a run keeps its folder"
    if options.eval and options.dry_run:
        return "--dry-run and --eval exclude each other: --eval writes nothing anyway"
    return None


def _of_weights(options: Options) -> str | None:
    """Data, weights and memory."""
    if options.download and options.data_path == "sample":
        return "--download and --data-path sample exclude each other: they are other photos"
    if options.val_split + options.test_split >= 1:
        return (
            f"--val-split {options.val_split:g} and --test-split {options.test_split:g} leave no "
            f"photos to train on"
        )
    if options.batch_size == "auto" and options.fsdp:
        return "--batch-size auto tries the whole model on one device: with --fsdp give N"
    if options.kan_reg and options.fsdp:
        return "--kan-reg needs whole splines, which --fsdp cuts: leave one of them out"
    return None


def _of_training(options: Options) -> str | None:
    if options.amp == "fp16" and options.device == "cpu":
        return "--amp fp16 needs a GPU: with --device cpu give --amp bf16 or auto"
    if options.new and options.epochs and (options.warmup_epochs or 0) > options.epochs:
        return (
            f"--warmup-epochs {options.warmup_epochs:g} is longer than --epochs {options.epochs}: "
            f"the full rate would never be reached"
        )
    return None


def _of_folds(options: Options) -> str | None:
    """What --folds does not go with."""
    if not options.folds:
        return None
    if "val_split" in options.given:
        return "--folds and --val-split exclude each other: each photo is validated once, in a fold"
    if options.fsdp:
        return "--folds and --fsdp exclude each other: each fold has a whole model of its own"
    if options.new and not options.epochs:
        return "--folds needs --epochs of 1 or more: each fold is trained"
    if options.ensemble and options.save_adapter:
        return (
            "--ensemble and --save-adapter exclude each other: the adapter is that of one model on "
            "all photos"
        )
    return None


def _of_views(options: Options) -> str | None:
    """Where --cache-views would keep nothing (`feature_cache.run_once`), or nothing of use."""
    if options.cache_views == 1:
        return None
    if options.aug == "none" and not options.reprob:
        return "--cache-views and --aug none exclude each other: all views would be equal"
    for name in EVERY_EPOCH:
        if getattr(options, name):
            flag = flag_of(name)
            return (
                f"--cache-views and {flag} exclude each other: with {flag} the frozen layers run "
                f"in every epoch"
            )
    return None
