"""The flags of train.py, the checks of their values, and what all command lines share.

`parse_args(argv)` returns the namespace together with the set of flags that the user typed: what
was not typed is chosen later for the case at hand (choices.py) and printed with its reason.
"""

import argparse
from collections.abc import Sequence

from system.flags import (
    DEVICES,
    Parser,
    block_list,
    existing,
    number,
    number_or,
    numbers,
    on_off,
    std_values,
    value_range,
)

# What --eval takes from the checkpoint: the model, and what photos look like to it.
OF_THE_CHECKPOINT = {"model", "img_size", "resize_mode", "mean", "std", "mlp", "freeze_layers"}


OF_THE_CHECKPOINT |= {"kan_blocks", "kan_hidden", "kan_rank", "kan_grid", "kan_order", "kan_range"}


def train_parser() -> Parser:
    """Returns the parser of train.py; `None` defaults are chosen for the case when training."""
    parser = Parser(
        prog="train.py",
        description="Fine-tune a Vision Transformer, with MLP or KAN blocks, on a folder of class "
        "folders of photos.",
        epilog="Values marked 'chosen' depend on the case (head only or all layers, pretrained or "
        "not, size of the data) and are printed with their reason.",
    )
    _data_flags(parser.add_argument_group("data"))
    _model_flags(parser.add_argument_group("model and weights"))
    _kan_flags(parser.add_argument_group("KAN blocks (with --mlp kan or gkan)"))
    _recipe_flags(parser.add_argument_group("training"))
    _regularisation_flags(parser.add_argument_group("augmentation and regularisation"))
    _machine_flags(parser.add_argument_group("machine"))
    _run_flags(parser.add_argument_group("the run"))
    return parser


def _data_flags(group) -> None:
    flag = group.add_argument
    flag(
        "--data-path",
        metavar="DIR",
        default="flower_photos",
        help="a folder per class, or train/ and val/ inside; 'sample' draws the sample flowers",
    )
    flag("--val-path", metavar="DIR", help="validation photos in a folder of their own")
    flag(
        "--val-split",
        type=number(float, 0, 0.9, open_low=True),
        default=0.2,
        metavar="SHARE",
        help="share of each class kept for validation",
    )
    flag(
        "--download",
        action="store_true",
        help="fetch the flower_photos data set (229 MB) when --data-path does not exist",
    )
    flag(
        "--num-classes",
        type=number(int, 1),
        metavar="N",
        help="checked against the data, which decides (default: from the data)",
    )
    flag(
        "--img-size",
        type=number(int, 1, 4096),
        metavar="PIXELS",
        help="side of the model's square input (default: the model's)",
    )
    flag(
        "--resize-mode",
        choices=("crop", "squash", "pad"),
        default="crop",
        help="crop: short side to 256/224 of the size, then its centre; squash: both sides; pad: "
        "long side, grey around",
    )
    flag(
        "--mean",
        type=numbers(3, "a mean"),
        metavar="R,G,B",
        help="normalisation (default: that of the weights)",
    )
    flag(
        "--std",
        type=std_values,
        metavar="R,G,B",
        help="normalisation (default: that of the weights)",
    )


def _model_flags(group) -> None:
    flag = group.add_argument
    flag(
        "--model",
        "--model-name",
        dest="model",
        metavar="NAME",
        help="a name of --list-models (default: what the weights file holds, else "
        "vit_base_patch16_224_in21k)",
    )
    flag(
        "--weights",
        type=str,  # the reference's '' means none
        metavar="FILE|NAME",
        default="",
        help="pretrained weights: a file, or a model's name to download them; '' for none "
        "(default: none)",
    )
    flag(
        "--allow-partial",
        action="store_true",
        help="accept weights that fill less than 90 %% of the model",
    )
    freeze = group.add_mutually_exclusive_group()
    freeze.add_argument(
        "--freeze-layers",
        nargs="?",
        const=True,
        type=on_off,
        metavar="true|false",
        help="keep what came from the weights file; train head and splines only (default: true "
        "with weights, false without)",
    )
    freeze.add_argument(
        "--no-freeze-layers",
        dest="freeze_layers",
        action="store_false",
        default=None,
        help="the same as --freeze-layers false (default: as there)",
    )
    flag("--list-models", action="store_true", help="print the table of models and stop")


def _kan_flags(group) -> None:
    flag = group.add_argument
    flag(
        "--mlp",
        choices=("mlp", "kan", "gkan"),
        default="mlp",
        help="what stands in the blocks: mlp, kan (a spline per edge), gkan (one per group of "
        "inputs)",
    )
    flag(
        "--kan-blocks",
        type=block_list,
        default="all",
        metavar="all|last:N|0,3,5",
        help="the blocks that become KAN",
    )
    flag(
        "--kan-hidden",
        type=number_or(("full", "match"), number(int, 1)),
        default="full",
        metavar="full|match|N",
        help="width inside a KAN block: the MLP's, one of equal parameters, or a number",
    )
    flag(
        "--kan-rank",
        type=number_or(("full",), number(int, 1)),
        metavar="full|R",
        help="rank of the spline coefficients; 16 trains two to three times faster than full "
        "(default: full)",
    )
    flag(
        "--kan-grid",
        type=number(int, 1, 1000),
        default=5,
        metavar="N",
        help="grid intervals of each spline",
    )
    flag(
        "--kan-order",
        type=number(int, 0, 10),
        default=3,
        metavar="N",
        help="degree of the splines",
    )
    flag(
        "--kan-range",
        type=value_range,
        default="auto",
        metavar="auto|LOW,HIGH",
        help="range of the grids; auto measures it on training photos",
    )
    flag(
        "--kan-reg",
        type=number(float, 0),
        default=0.0,
        metavar="X",
        help="weight of the splines' L1 and entropy penalty",
    )
    flag(
        "--kan-lr-scale",
        type=number(float, 0, open_low=True),
        metavar="X",
        help="the splines' learning rate as a multiple of --lr (default: chosen)",
    )


def _recipe_flags(group) -> None:
    flag = group.add_argument
    flag(
        "--epochs",
        type=number(int, 0),
        metavar="N",
        help="0 only evaluates the start",
        default=10,
    )
    flag(
        "--batch-size",
        type=number_or(("auto",), number(int, 1)),
        metavar="N|auto",
        help="photos per step and process; auto tries how many fit into memory (default: chosen)",
    )
    flag(
        "--accum-steps",
        type=number(int, 1),
        default=1,
        metavar="N",
        help="batches per update",
    )
    flag("--opt", choices=("sgd", "adamw"), default="adamw", help="optimiser")
    flag(
        "--lr",
        type=number(float, 0),
        metavar="X",
        help="peak learning rate, used as given (default: chosen, grows with the total batch)",
    )
    flag(
        "--lrf",
        type=number(float, 0, 1),
        default=0.01,
        metavar="X",
        help="final rate as a share of --lr, on a cosine",
    )
    flag(
        "--weight-decay",
        type=number(float, 0),
        metavar="X",
        help="not on biases, norms, tokens, positions (default: chosen)",
    )
    flag(
        "--decay-all",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="weight decay on those, too, as in the reference",
    )
    flag(
        "--warmup-epochs",
        type=number(float, 0),
        metavar="N",
        help="epochs of linear warm-up (default: chosen)",
    )
    flag(
        "--layer-decay",
        type=number(float, 0, 1, open_low=True),
        metavar="X",
        help="each block's rate is X times that of the next (default: chosen)",
    )
    flag(
        "--clip-grad",
        type=number(float, 0),
        default=1.0,
        metavar="X",
        help="largest norm of the gradient, 0 for no limit",
    )
    flag(
        "--ema",
        type=number(float, 0, 0.999999),
        default=0.0,
        metavar="DECAY",
        help="evaluate and save a moving average of the weights, e.g. 0.998; 0 for none",
    )
    flag(
        "--patience",
        type=number(int, 0),
        default=0,
        metavar="N",
        help="stop after N epochs without a better one; 0 for never",
    )
    flag("--teacher", type=existing, metavar="FILE", help="a checkpoint to distil from")
    flag(
        "--teacher-weight",
        type=number(float, 0, 1),
        default=0.5,
        metavar="X",
        help="share of the teacher in the loss",
    )


def _regularisation_flags(group) -> None:
    flag = group.add_argument
    flag(
        "--aug",
        choices=("none", "basic", "trivial", "rand"),
        help="none: as in validation; basic: random crop and flip; then TrivialAugment or "
        "RandAugment (default: chosen)",
    )
    flag(
        "--reprob",
        type=number(float, 0, 1),
        default=0.0,
        metavar="P",
        help="chance of random erasing",
    )
    flag(
        "--mixup",
        type=number(float, 0),
        default=0.0,
        metavar="ALPHA",
        help="mixup's alpha, 0 for none",
    )
    flag(
        "--cutmix",
        type=number(float, 0),
        default=0.0,
        metavar="ALPHA",
        help="CutMix's alpha, 0 for none",
    )
    flag(
        "--label-smoothing",
        type=number(float, 0, 0.99),
        metavar="X",
        help="mass moved from the label to all classes (default: chosen)",
    )
    flag(
        "--drop-path",
        type=number(float, 0, 0.99),
        metavar="P",
        help="stochastic depth of the last block, less before it",
        default=0.0,
    )
    flag(
        "--class-weights",
        choices=("none", "balanced"),
        default="none",
        help="balanced: rare classes weigh more",
    )


def _machine_flags(group) -> None:
    flag = group.add_argument
    flag(
        "--device",
        default="auto",
        metavar="NAME",
        help=DEVICES,
    )
    flag(
        "--amp",
        choices=("auto", "off", "bf16", "fp16"),
        default="auto",
        help="mixed precision; auto: bf16 where the hardware has it, fp16 on older CUDA",
    )
    flag(
        "--cache-views",
        type=number(int, 1, 1000),
        default=1,
        metavar="N",
        help="views of each photo for which the frozen layers run, once; with more than one, "
        "photos are augmented",
    )
    flag(
        "--cache-images",
        choices=("auto", "ram", "disk", "off"),
        default="auto",
        help="decode each photo once and keep its pixels: in memory, in a file in the run's "
        "folder, or not; auto: in memory if a quarter of what is free holds them",
    )
    flag("--compile", action="store_true", help="compile the model first")
    flag(
        "--grad-checkpointing",
        "--grad-checkpoint",
        nargs="?",
        const=True,
        default=False,
        type=on_off,
        metavar="true|false",
        help="save memory by computing activations again",
    )
    flag(
        "--fsdp",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="with several processes (torchrun): cut the model into shards instead of copying it "
        "to each device",
    )
    flag(
        "-j",
        "--workers",
        type=number(int, 0, 256),
        metavar="N",
        help="processes that decode photos (default: cores, at most 8)",
    )
    flag(
        "--seed",
        type=number(int, 0, 2**32 - 1),
        default=0,
        metavar="N",
        help="of split, weights and augmentation",
    )


def _run_flags(group) -> None:
    flag = group.add_argument
    flag(
        "--output",
        metavar="DIR",
        help="where the run is written (default: weights/<model>-<data>-<n>)",
    )
    flag(
        "--resume",
        nargs="?",
        const="newest",
        metavar="DIR",
        help="continue the run in DIR, or the newest one under weights/",
    )
    flag(
        "--save-steps",
        type=number(int, 0),
        default=0,
        metavar="N",
        help="write last.pth every N updates as well as after each epoch; 0: epochs only",
    )
    flag("--eval", action="store_true", help="evaluate --weights on the data and stop")
    flag(
        "--dry-run",
        action="store_true",
        help="check data and weights, print what would happen, train and write nothing",
    )


def parse_args(argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, set[str]]:
    """Returns the flags of train.py and the names of those that the user typed."""
    parser = train_parser()
    args = parser.parse_args(argv)
    for action in parser._actions:
        action.default = argparse.SUPPRESS
    typed = set(vars(parser.parse_args(argv)))
    _check_together(parser, args, typed)
    return args, typed


def _check_together(parser: Parser, args: argparse.Namespace, typed: set[str]) -> None:
    """Ends with a sentence where two flags contradict each other."""
    new_run = not args.resume and not args.eval
    if args.eval and not args.weights:
        parser.error("--eval needs --weights FILE, the model to evaluate")
    if args.eval and args.resume:
        parser.error("--eval and --resume exclude each other: --eval trains nothing")
    for name in sorted(typed & OF_THE_CHECKPOINT) if args.eval else ():
        parser.error(f"{_flag(name)} and --eval exclude each other: --weights FILE says it")
    for name in ("dry_run", "output"):
        if args.resume and name in typed:
            parser.error(f"{_flag(name)} and --resume exclude each other: a run keeps its folder")
    if args.eval and args.dry_run:
        parser.error("--dry-run and --eval exclude each other: --eval writes nothing anyway")
    if args.val_path and "val_split" in typed:
        parser.error("--val-split and --val-path exclude each other: all of DIR is for validation")
    if args.download and args.data_path == "sample":
        parser.error("--download and --data-path sample exclude each other: they are other photos")
    if args.batch_size == "auto" and args.fsdp:
        parser.error("--batch-size auto tries the whole model on one device: with --fsdp give N")
    if args.kan_reg and args.fsdp:
        parser.error("--kan-reg needs whole splines, which --fsdp cuts: leave one of them out")
    if args.mlp == "gkan" and args.kan_rank not in (None, "full"):
        parser.error("--kan-rank and --mlp gkan exclude each other: a group's spline has no rank")
    if "teacher_weight" in typed and not args.teacher:
        parser.error("--teacher-weight needs --teacher FILE")
    if args.amp == "fp16" and args.device == "cpu":
        parser.error("--amp fp16 needs a GPU: with --device cpu give --amp bf16 or auto")
    if new_run and args.freeze_layers and not args.weights:
        parser.error("--freeze-layers needs --weights FILE: without it all weights are random")
    if new_run and args.allow_partial and not args.weights:
        parser.error("--allow-partial needs --weights FILE")
    if new_run and args.epochs and (args.warmup_epochs or 0) > args.epochs:
        parser.error(
            f"--warmup-epochs {args.warmup_epochs:g} is longer than --epochs {args.epochs}: the "
            f"full rate would never be reached"
        )
    if args.cache_views > 1:
        _check_views(parser, args)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _check_views(parser: Parser, args: argparse.Namespace) -> None:
    """Ends with a sentence where --cache-views would keep nothing (`Trainer.skip_frozen`)."""
    if args.freeze_layers is False or not (args.weights or args.resume):
        parser.error("--cache-views needs frozen layers: --weights FILE, --freeze-layers true")
    if args.aug == "none" and not args.reprob:
        parser.error("--cache-views and --aug none exclude each other: all views would be equal")
    for name in ("mixup", "cutmix", "teacher", "fsdp"):
        if getattr(args, name):
            parser.error(
                f"--cache-views and {_flag(name)} exclude each other: with {_flag(name)} the "
                f"frozen layers run in every epoch"
            )
