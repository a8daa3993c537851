"""What is compared: each form's fields of `ViTConfig` and the rates that its search begins with.

A form is the head alone, or the head beside what it adds to frozen blocks, or all layers with or
without that. Variants are one form of splines, changed at one place each.
"""

from dataclasses import dataclass, field, replace

FEATURE = {"mlp": "gkan", "kan_groups": "feature"}
LORA = {"adapt": "lora", "lora_at": "mlp"}


@dataclass(frozen=True)
class Form:
    """config: of the model. rates: where the search begins, of what the form adds or of all layers.

    everything: whether all layers train. biases: whether the blocks' own do. epochs: how often the
    photos pass. spline_rate: of splines where all layers train, twice what `training.choices` has
    for such batches. lora_rate: of LoRA beside splines. knots, outside: how the range of a spline
    is set, `outside` being the share of inputs beyond it. head_rate: of a new head beside anything
    else; alone it has the rates of its form. smooth: weight of the squared second
    differences of coefficients. decay: weight decay of the splines. refined: the cells from the
    middle of training on.
    """

    config: dict = field(default_factory=dict)
    rates: tuple[float, ...] = ()
    everything: bool = False
    biases: bool = False
    epochs: int = 8
    spline_rate: float | None = None
    lora_rate: float | None = None
    head_rate: float = 3e-3
    knots: str = "even"
    outside: float = 0.01
    smooth: float = 0.0
    decay: float = 0.0
    refined: int | None = None


def all_layers(
    spline_rate: float | None = None, head_rate: float = Form.head_rate, **config
) -> Form:
    rates = 1e-4, 2e-4, 4e-4
    return Form(config, rates, everything=True, spline_rate=spline_rate, head_rate=head_rate)


FORMS: dict[str, Form] = {
    "head alone": Form({}, (1e-3, 3e-3, 1e-2)),
    "biases": Form({}, (2.5e-3, 5e-3, 1e-2), biases=True),
    "LoRA r=4": Form(LORA | {"lora_rank": 4}, (1.25e-3, 2.5e-3, 5e-3)),
    "spline per feature": Form(FEATURE, (1e-2, 2e-2, 4e-2)),
    "spline per feature, 4 maps": Form(FEATURE | {"kan_at": "all"}, (5e-3, 1e-2, 2e-2)),
    # More controls, more forms of splines, and all layers.
    "head alone, 40 epochs": Form({}, (3e-4, 1e-3, 3e-3), epochs=40),
    "scale and shift": Form({"adapt": "affine"}, (5e-3, 1e-2, 2e-2)),
    "LoRA r=1": Form(LORA | {"lora_rank": 1}, (5e-3, 1e-2, 2e-2)),
    "LoRA r=16": Form(LORA | {"lora_rank": 16}, (2.5e-3, 5e-3, 1e-2)),
    "LoRA r=2, 4 maps": Form(
        {"adapt": "lora", "lora_rank": 2, "lora_at": "all"}, (2.5e-3, 5e-3, 1e-2)
    ),
    "8 groups": Form({"mlp": "gkan", "kan_groups": 8}, (2e-2, 4e-2, 8e-2)),
    "192 groups": Form({"mlp": "gkan", "kan_groups": 192}, (2e-2, 4e-2, 8e-2)),
    "spline per hidden feature": Form(FEATURE | {"kan_at": "hidden"}, (2e-2, 4e-2, 8e-2)),
    "splines of rank 1": Form({"mlp": "kan", "kan_rank": 1}, (2.5e-3, 5e-3, 1e-2)),
    "splines of rank 4": Form({"mlp": "kan", "kan_rank": 4}, (2.5e-3, 5e-3, 1e-2)),
    "splines of rank 16": Form({"mlp": "kan", "kan_rank": 16}, (8e-4, 1.5e-3, 3e-3)),
    "all layers": all_layers(),
    "all layers, LoRA r=4": all_layers(**LORA, lora_rank=4),
    "all layers, spline per feature": all_layers(1.6e-2, **FEATURE),
    "all layers, spline per feature, 4 maps": all_layers(1.6e-2, **FEATURE, kan_at="all"),
    "all layers, splines of rank 16": all_layers(mlp="kan", kan_rank=16),
    "all layers, head at 1e-3": all_layers(head_rate=1e-3),
    "all layers, spline per feature, 4 maps, head at 1e-3": all_layers(
        1.6e-2, head_rate=1e-3, **FEATURE, kan_at="all"
    ),
}
FIVE = tuple(FORMS)[:5]
SPLINES = {name for name, form in FORMS.items() if form.config.get("mlp")}

BASE = FORMS["spline per feature, 4 maps"]  # the lowest loss of the splines in stage (a)


def changed(**fields) -> Form:
    return replace(BASE, config=BASE.config | fields)


# One place changed at a time, each at its base's rate. Sites: `FORMS` has splines at fewer maps.
VARIANTS: dict[str, Form] = {
    "order 1": changed(kan_order=1),
    "order 2": changed(kan_order=2),
    "3 cells": changed(kan_grid=3),
    "12 cells": changed(kan_grid=12),
    "range of 95 %": replace(BASE, outside=0.05),
    "knots by quantile": replace(BASE, knots="quantile"),
    "3 cells, later 6": replace(changed(kan_grid=3), refined=6),
    # A trained model's second differences have a squared sum of some 700: 0.07 of a loss of 0.8.
    "smoothness 1e-4": replace(BASE, smooth=1e-4),
    "weight decay 1": replace(BASE, decay=1.0),
    "dropout 0.1": changed(drop_rate=0.1),
    "beside LoRA r=2": replace(changed(**LORA, lora_rank=2), lora_rate=1.25e-3),
    "beside biases": replace(BASE, biases=True),
}
