"""The benchmark of explanations: its measures on models of known truth, its lines and tables."""

import json
from argparse import Namespace

import pytest
import torch
from torch import nn

from benchmarks import explain_faithfulness as script
from benchmarks.faithful import measures
from explaining.methods import NEXT_BEST
from vit_model import create_model


class Sees(nn.Module):
    """A model whose first logit is what some patches of a 4 x 4 grid of 8 pixels hold above 0."""

    def __init__(self, *patches):
        super().__init__()
        self.seen = measures.on_pixels(torch.zeros(16).index_fill(0, torch.tensor(patches), 1.0),
                                       torch.zeros(3, 32, 32))  # fmt: skip

    def forward(self, images):
        value = (images * self.seen).sum((1, 2, 3)) / self.seen.sum() / 3
        return torch.stack([4 * value, torch.zeros_like(value)], 1)


def test_patches_are_marked_on_their_pixels_and_the_rest_is_no_patchs():
    pixels = measures.on_pixels(torch.arange(4.0), torch.zeros(3, 9, 9))
    assert pixels.shape == (1, 9, 9)
    assert pixels[0, 0, 4] == 1
    assert pixels[0, 4, 3] == 2
    assert pixels[0, 8].sum() == 0


def test_the_first_patches_of_an_order_grow_from_none_to_all():
    order = torch.tensor([2, 0, 3, 1])
    assert measures.firsts(order, 2).int().tolist() == [[0, 0, 0, 0], [1, 0, 1, 0], [1, 1, 1, 1]]


def test_curves_are_those_of_photos_masked_one_by_one():
    model, image = Sees(1, 6), torch.rand(3, 32, 32)
    relevance = torch.rand(16)
    found = measures.curves(model, image, 0, relevance, 4)
    order = relevance.argsort(descending=True).tolist()
    for name, filler in measures.fillers(image).items():
        for way in ("deletion", "insertion"):
            values = []
            for step in range(5):
                out = image.clone() if way == "deletion" else filler.clone()
                for patch in order[: 4 * step]:
                    row, column = (8 * n for n in divmod(patch, 4))
                    square = (slice(None), slice(row, row + 8), slice(column, column + 8))
                    out[square] = (filler if way == "deletion" else image)[square]
                values.append(float(model(out[None]).softmax(1)[0, 0]))
            area = sum(values) - (values[0] + values[-1]) / 2
            assert found[f"{way}_{name}"] == pytest.approx(area / 4, abs=1e-6)


def test_the_true_map_beats_the_false_one_by_every_measure():
    model, image = Sees(1, 6), torch.ones(3, 32, 32)
    true = torch.zeros(16).index_fill(0, torch.tensor([1, 6]), 1.0)
    good, bad = (measures.curves(model, image, 0, one, 8) for one in (true, 1 - true))
    assert good["insertion_mean"] > bad["insertion_mean"]
    assert good["deletion_mean"] < bad["deletion_mean"]
    assert good["saco"] == pytest.approx(1)
    assert bad["saco"] < 0


def test_saco_by_hand():
    # Pairs differ by 1, 3, 2 of relevance; the last group falls more than the middle: 1 + 3 - 2.
    value = measures.saco(torch.tensor([4.0, 3.0, 1.0]), torch.tensor([0.5, 0.1, 0.2]))
    assert value == pytest.approx((1 + 3 - 2) / 6)
    assert measures.saco(torch.ones(3), torch.rand(3)) == 0


def test_an_object_is_pasted_where_it_is_said_to_be():
    background, subject = torch.zeros(3, 224, 224), torch.ones(3, 224, 224)
    subject[:, :50] = 9  # outside the middle half
    pasted = measures.paste(background, subject, torch.Generator().manual_seed(3))
    box = pasted.image[:, pasted.top :, pasted.left :][:, : pasted.side, : pasted.side]
    assert box.shape == (3, 96, 96)
    assert torch.allclose(box, torch.ones_like(box), atol=1e-5)
    assert float(pasted.image.sum()) == pytest.approx(3 * 96 * 96, rel=1e-4)
    assert not background.any()


def test_pointing_counts_the_highest_patch_and_the_share_in_the_box():
    pasted = measures.Pasted(torch.zeros(3, 32, 32), top=4, left=8, side=12)
    relevance = torch.zeros(16)
    relevance[1] = 2.0  # row 0, column 1: rows 4 to 8 of it, a half, lie in the box
    relevance[15], relevance[4] = 1.0, -5.0
    assert measures.pointing(relevance, pasted) == {"hit": 1, "inside": pytest.approx(1 / 3)}
    relevance[15] = 3.0
    assert measures.pointing(relevance, pasted)["hit"] == 0


# --------------------------------------------------------------------------- lines and tables


@pytest.fixture
def setting(tmp_path, make_photos, monkeypatch):
    """A data set, a tiny model of it, and the arguments that measure both."""
    data = make_photos(tmp_path / "flowers", per_class=3)
    torch.manual_seed(0)
    model = create_model("custom", num_classes=3, img_size=32, patch_size=8, embed_dim=24,
                         depth=2, num_heads=3).eval()  # fmt: skip
    nn.init.normal_(model.head.weight)
    facts = {"classes": ["daisy", "roses", "tulips"], "epoch": 1, "metrics": {}, "version": 1}
    facts["preprocess"] = {"img_size": 32}
    state = {"model": model.state_dict(), "config": model.config, **facts}
    torch.save(state, tmp_path / "flowers-ViT.pth")
    words = ["--data", str(data), "--models", str(tmp_path), "--kinds", "ViT", "--steps", "4"]
    words += ["--results", str(tmp_path / "lines.jsonl"), "--photos", "4", "--workers", "2"]
    words += ["--methods", NEXT_BEST, "LibraGrad", "random"]
    return script.parse_args(words)


def test_workers_share_the_photos_and_a_stopped_run_goes_on(setting: Namespace):
    script.work(setting, 0)
    first = setting.results.read_text("utf-8").splitlines()
    script.work(setting, 1)
    script.work(setting, 0)
    lines = [json.loads(line) for line in setting.results.read_text("utf-8").splitlines()]
    assert (len(first), len(lines)) == (6, 12)
    assert len({line["key"] for line in lines}) == 12
    assert {line["method"] for line in lines} == {NEXT_BEST, "LibraGrad", "random"}
    text = "\n".join(setting.results.read_text("utf-8").splitlines()[:-1]) + "\n"
    setting.results.write_text(text, "utf-8")
    script.work(setting, 1)
    again = [json.loads(line) for line in setting.results.read_text("utf-8").splitlines()]
    same = {"deletion_mean", "insertion_blur", "saco", "hit", "inside", "key"}
    assert {k: again[-1][k] for k in same} == {k: lines[-1][k] for k in same}
    assert "flowers, ViT" in script.show(again)


def test_no_photo_begins_when_the_minutes_are_over(setting: Namespace):
    setting.minutes = -1
    script.work(setting, 0)
    assert not setting.results.exists()


def test_differences_are_paired_by_photo():
    def lines(method, *scores):
        shared = {"data": "d", "model": "ViT", "method": method, "saco": 0.1, "hit": 1}
        shared |= {"inside": 0.5, "seconds": 0.2, "deletion_mean": 0.0, "deletion_blur": 0.0}
        return [
            shared | {"photo": str(n), "insertion_mean": s, "insertion_blur": s}
            for n, s in enumerate(scores)
        ]

    # The base varies by 0.4 from photo to photo, the difference by 0.1 around 0.2.
    table = script.show([*lines(NEXT_BEST, 0.1, 0.5, 0.9), *lines("new", 0.2, 0.7, 1.2)])
    rows = [line for line in table.splitlines() if line.startswith("| new")]
    assert "+0.200 ± 0.058 (+3.5 SE)" in rows[0]
    assert table.index("| new") < table.index(f"| {NEXT_BEST}")
