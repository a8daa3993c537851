"""One training of one form on photos of a pack, and what it costs.

All forms see the same photos in the same order from the same logits, and only they differ. The
pieces are train.py's own: conversion, calibration, optimiser, rates of curves, schedule.
"""

import statistics
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kan
from benchmarks.forms.pack import SIZE, Pack, PhotoSet
from benchmarks.forms.table import Form
from formats.fitting import load_into
from imaging.preprocess import Normalise, Preprocess
from kan import GroupKANLinear
from splines.layer import SplineLayer
from system import devices
from training.batch_size import resident
from training.feature_cache import plan, rest_of, run_frozen
from training.optim import CurveRates, create_lr_scheduler, create_optimizer, freeze, param_groups
from vit_model import HEADS, VisionTransformer, create_model, is_spline

BATCH, LRF = 16, 0.01
JUDGED = 0.4  # the share of photos that judge, of a set without a test part
MOST_JUDGES = 300  # photos to choose rates by
CALIBRATION = 128


@dataclass(frozen=True)
class Job:
    """What is trained: a form by its name, on a set, of a seed, so many photos, at a rate.

    choosing: judged by photos that the run of this seed neither trains on nor keeps for judging.
    """

    form: str
    set: str
    seed: int
    photos: int
    rate: float
    choosing: bool

    @property
    def key(self) -> str:
        part = "choosing" if self.choosing else "test"
        which = f"{self.form}, {self.set}, {self.photos} photos, seed {self.seed}"
        return f"{which}, {self.rate:g}, {part}"


# --- photos -------------------------------------------------------------------------------------


def sides(photos: PhotoSet, job: Job) -> tuple[Tensor, Tensor]:
    """Returns the indices of the photos that train and of those that judge."""
    generator = torch.Generator().manual_seed(job.seed)
    order = torch.randperm(len(photos.labels), generator=generator)
    if photos.test.any():
        pool, test = order[~photos.test[order]], photos.test.nonzero().flatten()
    else:
        cut = int(JUDGED * len(order))
        test, pool = order[:cut].sort().values, order[cut:]
    ours = drawn(photos.labels[pool], job.photos)
    if not job.choosing:
        return pool[ours], test
    rest = torch.ones(len(pool), dtype=torch.bool).index_fill_(0, ours, False)
    return pool[ours], pool[rest][:MOST_JUDGES]


def drawn(labels: Tensor, count: int, least: int = 1) -> Tensor:
    """Returns the places of `count` labels, each class with its share and `least` or more."""
    if count >= len(labels):
        return torch.arange(len(labels))
    places = [(labels == c).nonzero().flatten() for c in labels.unique()]
    first = torch.cat([p[:least] for p in places])
    # What comes first in each class by its share of it: rank within the class over its size.
    rest = [(rank / len(p), int(i)) for p in places for rank, i in enumerate(p[least:], least)]
    more = [i for _, i in sorted(rest)[: max(0, count - len(first))]]
    return torch.cat([first, torch.tensor(more, dtype=torch.long)])


# --- the model ----------------------------------------------------------------------------------


def build(
    form: Form, pack: Pack, classes: int, images: Tensor
) -> tuple[VisionTransformer, list[str]]:
    """Returns a model of the form, calibrated on `images`, and the names of what trains."""
    config = pack.weights.config | {"num_classes": classes, "img_size": SIZE} | form.config
    torch.manual_seed(0)
    model = create_model(**config)
    report = load_into(model, pack.weights)
    pretrained = () if form.everything else report.from_file
    trainable = freeze(model, pretrained, form.biases)
    if any(isinstance(module, SplineLayer) for module in model.modules()):
        with torch.no_grad():
            set_ranges(model, form, images[:CALIBRATION].split(32))
    return model, trainable


def set_ranges(model: nn.Module, form: Form, batches) -> None:
    if form.knots == "even":
        kan.calibrate(model, batches, form.outside)
        return
    layers = [module for module in model.modules() if isinstance(module, SplineLayer)]
    hooks = [
        layer.register_forward_pre_hook(lambda layer, args: layer.update_grid(args[0]))
        for layer in layers
    ]
    model.eval()
    model(torch.cat(list(batches)))
    for hook in hooks:
        hook.remove()


def optimiser_of(model: VisionTransformer, form: Form, rate: float) -> torch.optim.Optimizer:
    """Returns AdamW with a rate for what the form adds, another for a new head beside it."""
    lr = form.lora_rate or rate
    scale, decay, layer_decay = rate / lr, 0.0, 1.0
    if form.everything:
        decay, layer_decay = 0.05, 0.75
        scale = form.spline_rate / rate if form.spline_rate else 1.0
    alone = not (form.everything or form.biases or form.config)
    head_scale = 1.0 if alone else form.head_rate / lr
    groups = param_groups(model, lr, decay, layer_decay, scale, head_lr_scale=head_scale)
    if form.decay:
        for group in groups:
            group["weight_decay"] = form.decay * any(map(is_spline, group["names"]))
    optimiser = create_optimizer("adamw", groups)
    CurveRates(model, "adamw").watch(optimiser)
    return optimiser


def refine(model: nn.Module, cells: int) -> None:
    """Gives every spline so many cells; the functions stay."""
    for module in model.modules():
        if isinstance(module, SplineLayer):
            module.refine(cells)


def roughness(model: nn.Module) -> Tensor:
    """Returns the sum of squared second differences of the grouped splines' coefficients."""
    layers = [module for module in model.modules() if isinstance(module, GroupKANLinear)]
    return torch.stack([layer.spline_weight.diff(n=2).square().sum() for layer in layers]).sum()


# --- training -----------------------------------------------------------------------------------


def train(job: Job, form: Form, pack: Pack, device: torch.device) -> dict:
    """Trains and judges; returns numbers, seconds, and each judging photo's log loss and answer."""
    photos = pack.sets[job.set]
    ours, theirs = sides(photos, job)
    normalise = Normalise(Preprocess(SIZE, mean=pack.weights.mean, std=pack.weights.std), device)
    load = lambda places: normalise(photos.images[places].to(device))  # noqa: E731
    model, trainable = build(form, pack, len(photos.classes), load(ours[:CALIBRATION]))
    model.to(device)
    skip = plan(model, trainable)
    skip = skip if skip > len(model.blocks) else 0  # the head alone reads features that stay
    rest = rest_of(model, skip)
    inputs = views(model, skip, load, ours, device)
    labels = photos.labels[ours].to(device)
    start = time.process_time()
    fit(model, rest, form, inputs, labels, job)
    seconds = time.process_time() - start
    judged = views(model, skip, load, theirs, device, mirrored=False)
    loss, right = judge(rest, judged, photos.labels[theirs].to(device))
    count = sum(p.numel() for n, p in model.named_parameters() if n in trainable)
    return {
        "numbers": count
        - sum(model.get_parameter(n).numel() for n in trainable if n.startswith(HEADS)),
        "train_seconds": round(seconds, 2),
        "dtype": str(half(device) or torch.float32).removeprefix("torch."),
        "accuracy": right.float().mean().item(),
        "loss": loss.mean().item(),
        "millinats": [round(1000 * value) for value in loss.tolist()],
        "right": "".join("01"[int(value)] for value in right),
    }


def autocast(device: torch.device):
    return devices.autocast(device, half(device))


def half(device: torch.device) -> torch.dtype | None:
    """Returns bfloat16 where the hardware has it: emulated, it takes ten times as long."""
    dtype = devices.amp_dtype("auto", device)
    return dtype if dtype is torch.bfloat16 else None


@torch.no_grad()
def views(model, skip: int, load, places: Tensor, device, mirrored: bool = True):
    """Returns view(batch of positions, mirrored) -> what the rest of the model takes.

    Features that stay are computed once for each photo and mirror image.
    """
    if not skip:
        images = load(places)
        return lambda batch, flip: images[batch].flip(-1) if flip else images[batch]
    kept = []
    model.eval()
    for flip in (False, True)[: 1 + mirrored]:
        parts = [load(part) for part in places.split(64)]
        with autocast(device):
            parts = [run_frozen(model, skip, x.flip(-1) if flip else x) for x in parts]
        kept.append(torch.cat(parts).float())
    return lambda batch, flip: kept[int(flip)][batch]


def stepping(model: VisionTransformer, form: Form, rate: float, per_epoch: int):
    """Returns optimiser, schedule, and all parameters that train."""
    optimiser = optimiser_of(model, form, rate)
    scheduler = create_lr_scheduler(
        optimiser, form.epochs * per_epoch, per_epoch * form.everything, LRF
    )
    return optimiser, scheduler, [p for g in optimiser.param_groups for p in g["params"]]


def fit(model, rest, form: Form, inputs, labels: Tensor, job: Job) -> None:
    """Trains in batches; half of them, drawn by the seed, are mirrored."""
    generator = torch.Generator().manual_seed(job.seed)
    sizes = form, job.rate, -(-len(labels) // BATCH)
    optimiser, scheduler, parameters = stepping(model, *sizes)
    torch.manual_seed(job.seed)  # of dropout
    rest.train()
    for epoch in range(form.epochs):
        if form.refined and epoch == form.epochs // 2:
            done = scheduler.last_epoch
            refine(model, form.refined)
            optimiser, scheduler, parameters = stepping(model, *sizes)
            optimiser.step()  # of no gradients yet: a schedule asks for one before its own
            for _ in range(done):
                scheduler.step()
        for batch in torch.randperm(len(labels), generator=generator).split(BATCH):
            flip = bool(torch.rand((), generator=generator) < 0.5)
            loss_of(rest, form, inputs(batch.to(labels.device), flip), labels[batch]).backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            optimiser.zero_grad()
            scheduler.step()


def loss_of(rest, form: Form, images: Tensor, labels: Tensor) -> Tensor:
    with autocast(labels.device):
        logits = rest(images)
    loss = F.cross_entropy(logits.float(), labels)
    return loss + form.smooth * roughness(rest) if form.smooth else loss


@torch.no_grad()
def judge(rest, inputs, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (log loss, whether the answer is right) of each photo, (M,) both."""
    rest.eval()
    places = torch.arange(len(labels), device=labels.device).split(64)
    with autocast(labels.device):
        logits = torch.cat([rest(inputs(part, False)).float() for part in places])
    return F.cross_entropy(logits, labels, reduction="none"), logits.argmax(1) == labels


def cost(form: Form, pack: Pack, device: torch.device, steps: int = 7) -> dict:
    """Returns a step's milliseconds of the processor and the peak memory of this process."""
    images = torch.randn(BATCH, 3, SIZE, SIZE)
    model, _ = build(form, pack, 10, images)
    model.to(device).train()
    optimiser = optimiser_of(model, form, form.rates[0])
    images, labels = images.to(device), torch.arange(BATCH, device=device) % 10
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    seconds = []
    for _ in range(steps):
        start = clock()
        with autocast(device):
            loss = F.cross_entropy(model(images).float(), labels)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(clock() - start)
    on_device = device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() if on_device else resident("VmHWM")
    return {
        "step_ms": round(1000 * statistics.median(seconds[2:]), 1),
        "peak_mb": round(peak / 1e6),
    }
