"""What is stated of a weights file: inside it, in the configs beside it, and by its name."""

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from formats.fact_table import CONTAINERS
from formats.facts import Source
from formats.hugging_face import with_defaults
from formats.open_clip import with_heads
from formats.opening import ENDINGS, RawWeights
from system.files import json_if_any
from vit_model import is_number

OPEN_CLIP = "open_clip_config.json"  # which says less than the others, where they are there, too
BESIDE = ("config.json", "preprocessor_config.json", "processor_config.json", OPEN_CLIP)
NAMES = ("model", "pytorch_model", "open_clip_model", "open_clip_pytorch_model")


def stated_levels(
    path: Path, raw: RawWeights, state: Mapping[str, Tensor]
) -> tuple[list[list[Source]], list[str]]:
    """Returns what is stated in the file, beside it and by its name, and notes on what is not read.

    Configs beside it describe the usual names of the hubs, or the only weights file of a folder;
    one of another width or depth belongs to something else.
    """
    told = raw.extras | raw.metadata
    statistics = {key for key in ("mean", "std") if is_number(told.get(key))}  # of a loss, say
    told = {key: value for key, value in told.items() if key not in statistics}
    inside = Source.of("the file itself", told)
    stated = {name: json_if_any(path.with_name(name)) for name in BESIDE}
    there = [name for name in BESIDE if path.with_name(name).exists()]
    notes = [
        f"{name} beside it cannot be read and counts for nothing"
        for name in there
        if not isinstance(stated[name], dict)
    ]
    stated = {name: said for name, said in stated.items() if isinstance(said, dict)}
    if "config.json" in stated:
        stated["config.json"] = with_defaults(stated["config.json"])
    if OPEN_CLIP in stated:
        stated[OPEN_CLIP] = with_heads(stated[OPEN_CLIP])
    config = stated.get("config.json", {})
    alone = sum(other.suffix in ENDINGS for other in path.parent.iterdir()) == 1
    if stated and not alone and path.name.split(".")[0] not in NAMES:
        notes.append(f"{', '.join(stated)} beside it: not believed, as other weights lie there")
        stated = {}
    elif not _describes(config, *width_and_depth(state)):
        notes.append("config.json beside it: not believed, for it has another width or depth")
        stated = {}
    open_clip = [Source.of(f"{OPEN_CLIP} beside the file", stated.pop(OPEN_CLIP, {}))]
    beside = [Source.of(f"{name} beside the file", said) for name, said in stated.items()]
    return [[inside], beside, open_clip, [Source.of_file_name(path)]], notes


def _describes(config: Mapping, width: int, depth: int) -> bool:
    """Whether a config can be that of a model so wide and deep."""
    flat = dict(config)
    for key in CONTAINERS:
        flat |= config[key] if isinstance(config.get(key), dict) else {}
    widths = [flat[key] for key in ("hidden_size", "embed_dim", "num_features") if key in flat]
    depths = [flat[key] for key in ("num_hidden_layers", "depth") if key in flat]
    same = set(map(str, widths)) <= {str(width)} or not width
    return same and (set(map(str, depths)) <= {str(depth)} or not depth)


def width_and_depth(state: Mapping[str, Tensor]) -> tuple[int, int]:
    """Returns both, 0 where no tensor tells."""
    blocks = [int(m[1]) for name in state if (m := re.match(r"blocks\.(\d{1,4})\.", name))]
    patches = state.get("patch_embed.proj.weight", ())
    return len(patches), 1 + max(blocks, default=-1)
