"""The options of train.py on data and model, a row each: the first half of the table in `flags`."""

from dataclasses import dataclass

from system.flags import (
    Given,
    Section,
    block_list,
    existing,
    grouping,
    number,
    number_or,
    numbers,
    on_off,
    std_values,
    value_range,
)
from training import needs

DATA = Section("data")
MODEL = Section("model and weights")
KAN = Section("KAN blocks (with --mlp kan or gkan)")
ADAPTERS = Section("adapters of the layers that stay as they are")

# Facts of a row. keep: whether a resumed run keeps the value, which would make it another run;
# checkpoint: what --eval takes from the checkpoint: the model, and what photos look like to it;
# judges: what --eval asks as well, as it does all that is left of the data.
FREE = {"keep": False}
OF_THE_CHECKPOINT = {"checkpoint": True}
JUDGES = {"judges": True}


@dataclass(frozen=True)
class DataAndModel(Given):
    """What a command line of train.py says of data and model."""

    data_path: str = DATA.row(
        "flower_photos",
        "a folder per class, or train/, val/ and test/ inside; 'sample' draws the sample flowers",
        metavar="DIR",
        **FREE,
    )
    val_path: str | None = DATA.row(
        None, "validation photos in a folder of their own", metavar="DIR", **FREE
    )
    test_path: str | None = DATA.row(
        None,
        "photos in a folder of their own that are judged once, at the end",
        metavar="DIR",
        **FREE,
    )
    val_split: float = DATA.row(
        0.2,
        "share of each class kept for validation",
        type=number(float, 0, 0.9, open_low=True),
        metavar="SHARE",
        needs=needs.SPLIT,
    )
    test_split: float = DATA.row(
        0.0,
        "share of each class kept for a test at the end; 0 for none",
        type=number(float, 0, 0.9),
        metavar="SHARE",
        needs=needs.TEST_SPLIT,
        idle=(0.0,),
    )
    group_by: str | None = DATA.row(
        None,
        "photos that every split keeps together: near-copies, folder (in a class folder), time "
        "(bursts), what a regular expression finds in file names, or none but exact copies "
        "(default: near-copies, of at most 20,000 photos)",
        type=grouping,
        metavar="HOW|REGEX",
    )
    exclude: list[str] | None = DATA.row(
        None,
        "leave out photos that a file lists: a path a line, or a suspects.csv; the photos stay "
        "where they are",
        kind="list",
        type=existing,
        metavar="FILE",
    )
    download: bool = DATA.row(
        False,
        "fetch the flower_photos data set (229 MB) when --data-path does not exist",
        kind="switch",
    )
    num_classes: int | None = DATA.row(
        None,
        "checked against the data, which decides (default: from the data)",
        type=number(int, 1),
        metavar="N",
    )
    img_size: int | None = DATA.row(
        None,
        "side of the model's square input (default: the model's)",
        type=number(int, 1, 4096),
        metavar="PIXELS",
        **OF_THE_CHECKPOINT,
    )
    resize_mode: str | None = DATA.row(
        None,
        "crop: short side to 256/224 of the size, then its centre; squash: both sides; pad: long "
        "side, grey around (default: as the weights' file or a config beside it says, else crop)",
        choices=("crop", "squash", "pad"),
        **OF_THE_CHECKPOINT,
    )
    mean: tuple[float, ...] | None = DATA.row(
        None,
        "normalisation (default: that of the weights)",
        type=numbers(3, "a mean"),
        metavar="R,G,B",
        **OF_THE_CHECKPOINT,
    )
    std: tuple[float, ...] | None = DATA.row(
        None,
        "normalisation (default: that of the weights)",
        type=std_values,
        metavar="R,G,B",
        **OF_THE_CHECKPOINT,
    )

    model: str | None = MODEL.row(
        None,
        "a name of --list-models (default: what the weights file holds, else "
        "vit_base_patch16_224_in21k)",
        "--model",
        "--model-name",
        metavar="NAME",
        **OF_THE_CHECKPOINT,
    )
    weights: str = MODEL.row(
        "",
        "pretrained weights: a file, a folder, a model's name to download them (--list-models), or "
        "auto: the best for the photos of what is here (auto:A,B: of these); '' for none (default: "
        "none)",
        type=str,  # the reference's '' means none
        metavar="FILE|NAME|auto",
        **JUDGES,
    )
    allow_partial: bool = MODEL.row(
        False,
        "accept weights that fill part of the model, or hold what it has no place for",
        kind="switch",
        needs=needs.WEIGHTS,
    )
    freeze_layers: bool | None = MODEL.row(
        None,
        "keep what came from the weights file; train what is new alone: head, splines, adapters "
        "(default: true with weights, false without)",
        kind="maybe",
        off="--no-freeze-layers",
        type=on_off,
        metavar="true|false",
        needs=needs.WEIGHTS,
        idle=(False,),
    )
    list_models: bool = MODEL.row(
        False, "print the table of models and stop", kind="switch", **JUDGES
    )

    mlp: str = KAN.row(
        "mlp",
        "what stands in the blocks: mlp, kan (a spline per edge), gkan (one per input, or per "
        "group of inputs)",
        choices=("mlp", "kan", "gkan"),
        **OF_THE_CHECKPOINT,
    )
    kan_blocks: str = KAN.row(
        "all",
        "the blocks that become KAN",
        type=block_list,
        metavar="all|last:N|0,3,5",
        **OF_THE_CHECKPOINT,
        **needs.KAN,
    )
    kan_hidden: int | str = KAN.row(
        "full",
        "width inside a KAN block: the MLP's, one of equal parameters, or a number",
        type=number_or(("full", "match"), number(int, 1)),
        metavar="full|match|N",
        **OF_THE_CHECKPOINT,
        **needs.KAN,
    )
    kan_rank: int | str | None = KAN.row(
        None,
        "rank of the spline coefficients; 16 trains two to three times faster than full (default: "
        "full)",
        type=number_or(("full",), number(int, 1)),
        metavar="full|R",
        **OF_THE_CHECKPOINT,
        **needs.RANK,
    )
    kan_groups: int | str | None = KAN.row(
        None,
        "splines of a layer with --mlp gkan: feature for one per input, or N that groups of inputs "
        "share (default: feature, or those in the weights file)",
        type=number_or(("feature",), number(int, 1, 65536)),
        metavar="feature|N",
        **OF_THE_CHECKPOINT,
        **needs.GROUPS,
    )
    kan_at: str | None = KAN.row(
        None,
        "the inputs that have splines: of both maps of the MLP (mlp), of its second one (hidden), "
        "of attention's two as well (all); default: all with a spline per feature, else mlp, or "
        "those in the weights file",
        choices=("mlp", "hidden", "all"),
        **OF_THE_CHECKPOINT,
        **needs.KAN,
    )
    kan_grid: int = KAN.row(
        5,
        "grid intervals of each spline",
        type=number(int, 1, 1000),
        metavar="N",
        **OF_THE_CHECKPOINT,
        **needs.KAN,
    )
    kan_order: int = KAN.row(
        3,
        "degree of the splines",
        type=number(int, 0, 10),
        metavar="N",
        **OF_THE_CHECKPOINT,
        **needs.KAN,
    )
    kan_range: str | tuple[float, float] = KAN.row(
        "auto",
        "range of the grids; auto measures it on training photos",
        type=value_range,
        metavar="auto|LOW,HIGH",
        **OF_THE_CHECKPOINT,
        **needs.KAN,
    )
    kan_reg: float = KAN.row(
        0.0,
        "weight of the splines' L1 and entropy penalty",
        type=number(float, 0),
        metavar="X",
        needs=needs.SPLINES,
        idle=(0.0,),
    )
    kan_lr_scale: float | None = KAN.row(
        None,
        "the splines' learning rate as a multiple of --lr (default: chosen)",
        type=number(float, 0, open_low=True),
        metavar="X",
        needs=needs.SPLINES,
        idle=(1.0,),
    )

    adapt: str = ADAPTERS.row(
        "none",
        "what trains beside head and splines: bias (the biases), affine (a scale and shift of each "
        "input of the MLP's maps), lora (a low-rank map beside each)",
        choices=("none", "bias", "affine", "lora"),
        needs=needs.ADAPT,
        idle=("none",),
        **OF_THE_CHECKPOINT,
    )
    lora_rank: int = ADAPTERS.row(
        4,
        "rank of LoRA",
        type=number(int, 1, 4096),
        metavar="R",
        needs=needs.LORA,
        **OF_THE_CHECKPOINT,
    )
    lora_at: str = ADAPTERS.row(
        "mlp",
        "the maps that have LoRA: the MLP's, attention's (qkv and proj), or all four",
        choices=("mlp", "attention", "all"),
        needs=needs.LORA,
        **OF_THE_CHECKPOINT,
    )
