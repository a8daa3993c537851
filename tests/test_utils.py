"""The loop's parts: counting, one epoch, evaluation, whole files, random states."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from formats.checkpoints import load_checkpoint, save_checkpoint
from system.devices import rng_state, seed_everything, set_rng_state
from system.files import atomic_file, clear_temporary, read_json, write_csv, write_json
from utils import Meter, Stepper, TooManyFailed, evaluate, train_one_epoch

CPU = torch.device("cpu")


def batch_of(images, labels, failed=()):
    return SimpleNamespace(
        images=images, labels=labels, failed=list(failed), indices=torch.arange(len(labels))
    )


def batches(sizes, features=4, classes=3):
    generator = torch.Generator().manual_seed(3)
    return [
        batch_of(
            torch.randn(n, features, generator=generator),
            torch.randint(classes, (n,), generator=generator),
        )
        for n in sizes
    ]


def cross_entropy(model, images, labels, step):
    logits = model(images)
    return F.cross_entropy(logits, labels), logits


def make_stepper(model, **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    return Stepper(optimizer, scheduler, torch.amp.GradScaler("cpu", enabled=False), **options)


def test_means_weigh_samples_not_batches():
    model = nn.Linear(4, 3)
    data = batches([8, 8, 3])
    result, probabilities, indices = evaluate(model, data, CPU)
    images = torch.cat([b.images for b in data])
    labels = torch.cat([b.labels for b in data])
    logits = model(images)
    assert result.samples == 19
    assert result.loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    assert result.accuracy == pytest.approx((logits.argmax(1) == labels).float().mean().item())
    torch.testing.assert_close(probabilities, logits.softmax(1).detach())
    assert len(indices) == 19


def test_an_epoch_equals_the_same_steps_by_hand():
    data, model = batches([8, 8, 3]), nn.Linear(4, 3)
    by_hand = nn.Linear(4, 3)
    by_hand.load_state_dict(model.state_dict())
    result = train_one_epoch(
        model, make_stepper(model), iter(data), CPU, cross_entropy, num_batches=3
    )
    losses = []
    for step, batch in enumerate(data):
        loss = F.cross_entropy(by_hand(batch.images), batch.labels)
        grads = torch.autograd.grad(loss, list(by_hand.parameters()))
        for parameter, grad in zip(by_hand.parameters(), grads, strict=True):
            parameter.data -= 0.1 * 0.5**step * grad
        losses.append(loss.item() * len(batch.labels))
    torch.testing.assert_close(model.weight, by_hand.weight)
    assert result.loss == pytest.approx(sum(losses) / 19, rel=1e-5)


@pytest.mark.parametrize("accum", [2, 3])
def test_accumulation_makes_one_step_of_several_batches_and_of_the_short_rest(accum):
    data, model = batches([4] * 5), nn.Linear(4, 3)
    stepper, steps = make_stepper(model), []
    train_one_epoch(
        model,
        stepper,
        iter(data),
        CPU,
        cross_entropy,
        num_batches=5,
        accum_steps=accum,
        after_step=lambda done, meter: steps.append(done),
    )
    assert steps == {2: [2, 4, 5], 3: [3, 5]}[accum]


@pytest.mark.parametrize("sizes", [(4, 4), (5, 5, 2), (2, 7, 5), (6, 0, 3), (0, 6, 3)])
def test_accumulated_batches_equal_one_large_batch_whatever_each_holds(sizes):
    data, model = batches(sizes), nn.Linear(4, 3)
    large = nn.Linear(4, 3)
    large.load_state_dict(model.state_dict())
    both = batch_of(torch.cat([b.images for b in data]), torch.cat([b.labels for b in data]))
    train_one_epoch(
        model,
        make_stepper(model),
        iter(data),
        CPU,
        cross_entropy,
        num_batches=len(sizes),
        accum_steps=len(sizes),
    )
    train_one_epoch(large, make_stepper(large), iter([both]), CPU, cross_entropy, num_batches=1)
    torch.testing.assert_close(model.weight, large.weight)


def test_clipping_limits_the_gradients_norm():
    model = nn.Linear(4, 3)
    before = [p.detach().clone() for p in model.parameters()]
    stepper = make_stepper(model, clip_grad=0.01)
    train_one_epoch(model, stepper, batches([8]), CPU, cross_entropy, num_batches=1)
    moved = [(p - b) / 0.1 for p, b in zip(model.parameters(), before, strict=True)]
    assert torch.cat([m.flatten() for m in moved]).norm().item() == pytest.approx(0.01, rel=1e-3)


def test_a_loss_that_is_not_finite_stops_with_the_batch_named():
    model = nn.Linear(4, 3)
    data = batches([4, 4])
    data[1].images[0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="nan at batch 2"):
        train_one_epoch(model, make_stepper(model), data, CPU, cross_entropy, num_batches=2)


def failure(number):
    return SimpleNamespace(path=f"photo{number}.jpg", reason="is truncated")


def test_failed_photos_are_counted_and_only_too_many_stop_the_run():
    model = nn.Linear(4, 3)
    data = batches([20, 20])
    data[0].failed.append(failure(1))
    result, _, _ = evaluate(model, data, CPU)
    assert (result.samples, len(result.failed)) == (40, 1)
    data[1].failed += [failure(n) for n in range(2, 8)]
    with pytest.raises(TooManyFailed, match=r"7 of 47 photos .* photo1.jpg: is truncated"):
        evaluate(model, data, CPU)


def test_a_batch_without_a_readable_photo_is_passed_over():
    model = nn.Linear(4, 3)
    data = [*batches([40]), batch_of(torch.empty(0), torch.empty(0).long(), [failure(1)])]
    result = train_one_epoch(model, make_stepper(model), data, CPU, cross_entropy, num_batches=2)
    assert result.samples == 40


def test_stopping_after_a_step_returns_none_but_not_at_the_very_end():
    model = nn.Linear(4, 3)

    def stop_at(number):
        return train_one_epoch(
            model,
            make_stepper(model),
            batches([4, 4]),
            CPU,
            cross_entropy,
            num_batches=2,
            after_step=lambda done, meter: done == number,
        )

    assert stop_at(1) is None
    assert stop_at(2).samples == 8


def test_an_interrupted_file_leaves_the_old_one_and_no_rest(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old", "utf-8")
    with pytest.raises(RuntimeError), atomic_file(path) as file:  # noqa: PT012
        file.write(b"half")
        raise RuntimeError
    assert path.read_text("utf-8") == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]


def test_leftovers_of_a_killed_writer_are_cleared(tmp_path):
    (tmp_path / ".last.pth.abc.tmp").write_text("half", "utf-8")
    (tmp_path / "last.pth").write_text("whole", "utf-8")
    (tmp_path / ".notes.tmp").write_text("of somebody else", "utf-8")
    clear_temporary(tmp_path, ["last.pth"])
    assert {p.name for p in tmp_path.iterdir()} == {"last.pth", ".notes.tmp"}


def test_checkpoints_round_trip_and_anything_else_is_named(tmp_path):
    path = tmp_path / "c.pth"
    save_checkpoint(path, {"model": {"w": torch.arange(3)}, "version": 1})
    assert torch.equal(load_checkpoint(path)["model"]["w"], torch.arange(3))
    save_checkpoint(path, {"model": {}, "version": 99})
    with pytest.raises(ValueError, match="newer version"):
        load_checkpoint(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"c\.pth is cut short or damaged"):
        load_checkpoint(path)
    torch.save([1], path)
    with pytest.raises(ValueError, match="holds no 'model'"):
        load_checkpoint(path)


def test_a_payload_in_a_checkpoint_is_never_executed(tmp_path):
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    torch.save({"model": Payload()}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match=r"evil\.pth"):
        load_checkpoint(tmp_path / "evil.pth")
    assert not (tmp_path / "executed").exists()


def test_json_and_csv_keep_any_script(tmp_path):
    write_json(tmp_path / "a.json", {"0": "鬱金香"})
    assert "鬱金香" in (tmp_path / "a.json").read_text(encoding="utf-8")
    assert read_json(tmp_path / "a.json") == {"0": "鬱金香"}
    write_csv(tmp_path / "a.csv", [{"epoch": 1, "x": 0.5}, {"epoch": 2, "x": 0.25}])
    assert (tmp_path / "a.csv").read_text("utf-8") == "epoch,x\n1,0.5\n2,0.25\n"
    (tmp_path / "b.json").write_text("{", "utf-8")
    with pytest.raises(ValueError, match=r"b\.json is not JSON"):
        read_json(tmp_path / "b.json")


def draw():
    return random.random(), np.random.rand(), torch.rand(1).item(), random.gauss(0, 1)


def test_random_states_survive_a_checkpoint(tmp_path):
    seed_everything(5)
    draw()
    save_checkpoint(tmp_path / "c.pth", {"model": {}, "rng": rng_state()})
    expected = draw(), draw()
    seed_everything(6)
    set_rng_state(load_checkpoint(tmp_path / "c.pth")["rng"])
    assert (draw(), draw()) == expected


def test_a_meter_starts_at_zero_without_dividing_by_it():
    assert (Meter().loss, Meter().accuracy, Meter().samples) == (0.0, 0.0, 0)
