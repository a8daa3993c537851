"""Tells what a weights file holds: its format, its model, its classes, how it normalises images.

`opening` gives the tensors, `ledger` those that count, `naming` gives them our names and `facts`
decides what no tensor says: attention heads, epsilon, activation, the meaning of the answers. An
adapter is read together with its backbone (`adapter_file`, `peft_folder`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from formats import peft_folder
from formats.adapter_file import checked_record, completed, find_backbone
from formats.architectures import heads_by_name
from formats.beside import stated_levels, width_and_depth
from formats.checking import (
    check_enough,
    checked_classes,
    checked_later,
    checked_metrics,
    checked_model,
    checked_preprocess,
    described,
)
from formats.checkpoints import check_version
from formats.facts import Decided, class_names, decide, misfits
from formats.followed import pooling, told_sizes
from formats.hugging_face import own_classifier, pooling_of
from formats.ledger import (
    check,
    one_model,
    refuse_relatives,
    with_one_head,
    with_two_answers,
    without_head,
)
from formats.naming import convert
from formats.opening import RawWeights, open_weights, weights_in
from formats.preparing import UNTOLD, family_of, prepared
from formats.renaming import without_unread
from formats.shapes import (
    check_complete,
    heads_in,
    known_heads,
    sizes_of,
    width_of_heads,
    with_absent_biases,
)
from imaging.preprocess import Preprocess
from system.files import json_or_text
from system.terminal import counted
from vit.adapters import merged
from vit.config import CHOICES, SWITCHES
from vit_model import FAMILIES, VARIANTS, ViTConfig, kind_of

MOST_ADAPTERS = 4  # one on the other


@dataclass
class WeightsFile:
    """What a weights file holds, under our names.

    format: where it comes from: "ours", "timm", "Hugging Face", "torchvision", "Google npz", ...
    family: "half", "imagenet" or "custom": how images are normalised; `mean` and `std` say it in
        numbers and `family_reason` how it was found.
    config: keyword arguments of `create_model` for the model that the tensors make.
    classes: the names of the head's classes, None where the file does not tell.
    preprocess: how photos are prepared, as `Preprocess.from_dict` takes it, and photos_from whence
        that is known; None for files of ours that do not tell: see `preparation`.
    meta: epoch, metrics, version and such of our own checkpoints.
    facts: what no tensor tells and how it was decided.
    ignored: tensors that were left out, with the reason.
    no_head: why the file's head cannot serve, None where it can or where there is none.
    classes_from: where the names of the classes stand, or why none that stand there fit.
    notes: what else a user should know of the reading, in sentences.
    """

    path: str
    format: str
    family: str
    family_reason: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    config: dict
    state: dict[str, Tensor]
    classes: list[str] | None = None
    preprocess: dict | None = None
    photos_from: str = UNTOLD
    meta: dict = field(default_factory=dict)
    facts: Decided = field(default_factory=Decided)
    ignored: dict[str, str] = field(default_factory=dict)
    no_head: str | None = None
    classes_from: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def class_names(self) -> list[str] | None:
        """The names of the classes unless they are mere numbers, 0, 1, 2 ..."""
        numbers = [str(i) for i in range(len(self.classes or ()))]
        return None if self.classes in (None, numbers) else self.classes

    @property
    def holds(self) -> str:
        """What the file holds, in words."""
        config = self.config
        classes = config["num_classes"]
        head = counted(classes, "class", "classes") if classes else "no head"
        kan = kind_of(config, " with ", " blocks")
        return (
            f"{config['name']}{kan} ({config['embed_dim']} wide, "
            f"{counted(config['depth'], 'block')}, {config['img_size']}-pixel images, {head})"
        )

    @property
    def preparation(self) -> Preprocess:
        """How photos are prepared for its model."""
        if self.preprocess:
            return Preprocess.from_dict(self.preprocess)
        return Preprocess(self.config["img_size"], mean=self.mean, std=self.std)

    @property
    def photos(self) -> str:
        """How photos are prepared, in words, with whence that is known."""
        return f"{self.preparation.words} ({self.photos_from})"

    def merged(self) -> "WeightsFile":
        """The same with its adapters, if it has any, merged into the weights."""
        if self.config.get("adapt", "none") == "none":
            return self
        return replace(self, state=merged(self.state), config=self.config | {"adapt": "none"})

    @property
    def assumptions(self) -> list[str]:
        """A line on what is assumed because no file tells it, and the notes."""
        assumed = ", ".join(f"{name} {value}" for name, value in self.facts.assumed.items())
        how = "a file's name as timm's or a config.json beside it overrules these"
        return [f"assumed, for nothing tells: {assumed}; {how}"] * bool(assumed) + self.notes


def read_weights(
    path: str | Path,
    model: str | None = None,
    num_heads: int | None = None,
    allow_partial: bool = False,
    within: int = 0,
    head: Mapping[str, Tensor] | None = None,
) -> WeightsFile:
    """Returns what a file or folder holds, of whatever format, recognised from its tensor names.

    model: the name of a variant, whose normalisation is assumed where the file tells nothing.
    num_heads: the attention heads, whatever the file says of them.
    allow_partial: leave unknown tensors out instead of refusing the file.
    within: how many adapters this is the backbone of, of adapters themselves but for the last.
    head: a classifier that such an adapter brings, under the names of its file.
    Raises ValueError or FileNotFoundError, with one sentence that names the file.
    """
    path = Path(path)
    if within > MOST_ADAPTERS:
        raise ValueError(
            f"{path} is an adapter of an adapter of many more: merge them into one file"
        )
    if adapter := peft_folder.opened(path):
        head = adapter.head | dict(head or {})
        base = read_weights(adapter.backbone, model, num_heads, allow_partial, within + 1, head)
        return _adapted(base.merged(), adapter)
    path = weights_in(path)
    raw = open_weights(path)
    try:
        if _is_ours(raw):
            if num_heads is not None:
                raise ValueError(
                    "says itself how many attention heads it has: leave out --num-heads"
                )
            return _read_ours(path, raw, allow_partial, within)
        if head:
            raw = replace(raw, tensors=raw.tensors | dict(head), brought=True)
        return _read_foreign(path, raw, model, num_heads, allow_partial)
    except ValueError as error:
        raise ValueError(f"{path} {error}") from None


def _adapted(base: WeightsFile, adapter: peft_folder.PeftAdapter) -> WeightsFile:
    """Returns the backbone of an adapter of the peft library with the adapter merged into it."""
    try:
        state = adapter.merged_into(base.state)
        config = base.config
        if "head.weight" in adapter.tensors:  # for other classes, which no file of peft names
            state, no_head = with_one_head(state, config["embed_dim"])
            config = config | {"num_classes": 0 if no_head else len(state["head.weight"])}
            base = replace(base, classes=None, classes_from="", no_head=no_head)
        state, _ = check(state, checked_model(config, state).state_dict().keys(), False)
    except ValueError as error:
        raise ValueError(f"{adapter.folder} {error}") from None
    note = f"LoRA of peft, merged into {base.path}"
    changed = {"path": str(adapter.folder), "config": config, "state": state}
    return replace(base, **changed, notes=[*base.notes, note])


def _is_ours(raw: RawWeights) -> bool:
    """Whether train.py or `save_weights` wrote it: others call other things `config`."""
    told = raw.extras or raw.metadata
    if "config" not in told or "preprocess" in told:
        return "config" in told
    config = told["config"] if raw.extras else json_or_text(told["config"])
    return "classes" in told and (not isinstance(config, dict) or "name" in config)


def _read_ours(path: Path, raw: RawWeights, allow_partial: bool, within: int) -> WeightsFile:
    """Reads a checkpoint of train.py, or a .safetensors that `save_weights` wrote."""
    extras = raw.extras or {key: json_or_text(text) for key, text in raw.metadata.items()}
    check_version(extras.get("version", 1))
    tensors = raw.tensors
    if extras.get("backbone") is not None:
        (tensors,) = whole_states(path, extras, [tensors], within)
    model = checked_model(extras["config"], tensors)
    config = model.config
    classes = checked_classes(extras.get("classes"), config)
    preprocess = extras.get("preprocess")
    mean, std = FAMILIES["half"]
    if preprocess:
        checked = checked_preprocess(preprocess, config)
        mean, std = checked.mean, checked.std
    checked_metrics(extras.get("metrics"))
    state, unknown = check(tensors, model.state_dict().keys(), allow_partial)
    return WeightsFile(
        path=str(path),
        format="ours",
        family=family_of(mean, std),
        family_reason="the checkpoint says so",
        mean=mean,
        std=std,
        config=config,
        state=state,
        classes=classes,
        preprocess=preprocess,
        photos_from="the checkpoint says so" if preprocess else UNTOLD,
        meta={
            k: extras[k] for k in ("epoch", "metrics", "version", "args", "group_by") if k in extras
        }
        | checked_later(extras),
        ignored=unknown,
        classes_from="the checkpoint",
    )


def whole_states(
    path: Path, told: Mapping, parts: Iterable[Mapping], within: int = 0
) -> list[dict]:
    """Returns parts of a model's state dict with what the file lacks of its backbone.

    told: what stands beside them, `config` and `backbone` among it. Raises ValueError, worded to
    follow the file's name, where the backbone cannot be found or is that of another model.
    """
    model = described(told["config"])
    found = find_backbone(checked_record(told["backbone"]), path)
    backbone = read_weights(found, allow_partial=True, within=within + 1).merged()
    check_enough(model, backbone.state)
    return [completed(part, model, backbone.state, backbone.config) for part in parts]


def _read_foreign(
    path: Path, raw: RawWeights, model: str | None, num_heads: int | None, allow_partial: bool
) -> WeightsFile:
    try:
        format_name, state, harmless, by_class = _named(raw)
        levels, notes = stated_levels(path, raw, state)
        facts = decide(levels, format_name, any("head" in n for n in state), allow_partial)
        notes += facts.not_followed
        pooler = None if raw.brought else _pooler(harmless)
        state, no_head = _made_ours(state, pooler, allow_partial)
        state, one_logit = _with_two_logits(state, facts, notes)
        sizes = _sizes(format_name, state, facts, num_heads, by_class)
    except (KeyError, IndexError, RuntimeError) as error:  # of tensors that others lack or misshape
        raise ValueError(f"has tensors that do not fit together ({error})") from None
    _check_parts(facts, sizes, allow_partial, notes)
    state = with_absent_biases(state, sizes["depth"], sizes["norm"])
    photos, unlike = prepared(path, format_name, sizes, facts, levels, model)
    mean, std = photos.preprocess.mean, photos.preprocess.std
    config = {"name": variant_like(sizes, family_of(mean, std))} | sizes
    known = checked_model(config, state).state_dict().keys()
    state, unknown = check(state, known, allow_partial)
    classes, classes_from = class_names(levels, sizes["num_classes"], one_logit)
    return WeightsFile(
        path=str(path),
        format=format_name,
        family=family_of(mean, std),
        family_reason=photos.mean_from,
        mean=mean,
        std=std,
        config=config,
        state=state,
        classes=classes,
        preprocess=photos.preprocess.to_dict(),
        photos_from=photos.photos_from,
        facts=facts,
        ignored=harmless | unknown,
        no_head=no_head or _no_classes(facts),
        classes_from=classes_from,
        notes=notes + unlike,
    )


def _named(raw: RawWeights) -> tuple[str, dict[str, Tensor], dict[str, str], str | None]:
    """Returns (format, tensors under our names, those left out with the reason, pooling).

    The pooling is that of a library's class, None where no tensor tells it.
    """
    tensors, harmless, prefix = one_model(raw.tensors)
    tensors, own = own_classifier(tensors, "vision_model." if raw.brought else prefix)
    format_name, state = convert(tensors, harmless)
    state, unread = without_unread(state)
    return format_name, state, harmless | unread, pooling_of(format_name, own, state)


def _pooler(harmless: Iterable[str]) -> str | None:
    """Returns why a head cannot serve beside a pooler that the file holds as well, if it does.

    The library's classifiers have none, so a user's module holds both.
    """
    name = next((name for name in harmless if "pooler.dense." in name), None)
    return name and f"the file has a pooler ({name}), and nothing tells whether the head reads it"


def _made_ours(
    state: dict[str, Tensor], pooler: str | None, allow_partial: bool
) -> tuple[dict, str | None]:
    """Returns the state with every linear map whole and one head, and why that cannot serve.

    pooler: why no head can serve, where the file holds a pooler as well.
    """
    if not allow_partial:
        refuse_relatives(state)
    check_complete(state)
    width, _ = width_and_depth(state)
    state, no_head = with_one_head(state, width)
    if pooler and "head.weight" in state:
        return without_head(state), pooler
    return state, no_head


def _length(state: Mapping[str, Tensor], name: str) -> int:
    return len(state[name]) if name in state else 0


def _no_classes(facts: Decided) -> str | None:
    if facts.values.get("answers") == "regression":
        return f"its answers are numbers, not classes: {facts.told['answers']}"
    return None


def _with_two_logits(
    state: dict[str, Tensor], facts: Decided, notes: list[str]
) -> tuple[dict[str, Tensor], bool]:
    """Returns the state and whether its head gave one logit, which then gives two.

    A yes or no: softmax of (0, logit) is the sigmoid.
    """
    if _length(state, "head.weight") != 1 or _no_classes(facts):
        return state, False
    facts.values["answers"] = "softmax"
    notes.append("its head gives one logit: a yes or no, the sigmoid of it the yes")
    return with_two_answers(state), True


def _check_parts(facts: Decided, sizes: Mapping, allow_partial: bool, notes: list[str]) -> None:
    """Raises ValueError where a part is stated that tensors say otherwise of, or only says so."""
    words = misfits(facts, sizes)
    if words and not allow_partial:
        raise ValueError(f"has {words[0]}; train.py --allow-partial believes the tensors")
    notes += words


def _sizes(
    format_name: str,
    state: Mapping[str, Tensor],
    facts: Decided,
    num_heads: int | None,
    by_class: str | None,
) -> dict[str, Any]:
    """Returns the fields of `ViTConfig`: what shapes tell, then what facts do."""
    of_patches = facts.values.get("no_embed_class")
    if format_name in ("Hugging Face", "DINOv2") and "reg_token" in state:
        of_patches = True  # as `fold_class_position` left them
    sizes = sizes_of(state, of_patches, facts.values.get("img_size"))
    sizes["num_heads"] = _heads(num_heads, facts, sizes | {"seen_heads": heads_in(state)})
    sizes["head_dim"] = width_of_heads(state, sizes["num_heads"])
    sizes |= told_sizes(facts, sizes)
    return sizes | {"global_pool": pooling(facts, sizes, by_class)}


def _heads(typed: int | None, facts: Decided, sizes: Mapping[str, Any]) -> int:
    """Returns the attention heads: those typed, told, known of this width and depth, or 64 wide."""
    name, told = "attention heads", facts.told.get("attention heads")
    if typed is not None:
        facts.told[name] = f"{typed} (--num-heads)"
        return typed
    if told is not None:
        return facts.values["num_heads"]
    if sizes["seen_heads"]:
        facts.told[name] = f"{sizes['seen_heads']} (its tensors)"
        return sizes["seen_heads"]
    known = heads_by_name(facts.names, sizes["embed_dim"], sizes["depth"])
    if known is not None:
        facts.told[name] = f"{known} (as in the model of its name)"
        return known
    if known_heads(sizes["embed_dim"], sizes["depth"]):
        facts.told[name] = f"{sizes['num_heads']} (as in known models of this width and depth)"
    else:
        how = "64 wide; pretrained.py FILE --num-heads N --save OUT overrules it"
        facts.assumed = {name: f"{sizes['num_heads']} ({how})"} | facts.assumed
    return sizes["num_heads"]


# Fields in which no variant differs: with another value a model is none.
VARIED = {"qkv_bias", "distilled", "dist_head", "no_embed_class", "mlp", "kan_at", "answers"}
PLAIN = {key: getattr(ViTConfig(), key) for key in (*SWITCHES, *CHOICES) if key not in VARIED}


def variant_like(sizes: dict, family: str) -> str:
    """Returns the name of the variant with these sizes, "custom" if there is none."""
    decisive = ("embed_dim", "depth", "patch_size", "distilled", "reg_tokens")
    telling = ("img_size", "num_classes")
    plain = all(sizes.get(key, value) == value for key, value in PLAIN.items())

    def likeness(name: str) -> tuple:
        variant = VARIANTS[name]
        full = {"distilled": False, "reg_tokens": 0, "num_classes": 1000} | variant.sizes
        same = [full[key] == sizes[key] for key in telling]
        layer_scale = ("init_values" in full) == (sizes["init_values"] is not None)
        fits = plain and layer_scale and all(full[key] == sizes[key] for key in decisive)
        return fits, variant.family == family, sum(same)

    best = max(VARIANTS, key=likeness)
    return best if likeness(best)[0] else "custom"
