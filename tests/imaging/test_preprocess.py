"""preprocess.py: the reference's pixels for evaluation, sound random ones for training."""

import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from imaging.preprocess import (
    AUGMENTATIONS,
    INTERPOLATIONS,
    RESIZE_MODES,
    Fit,
    Normalise,
    Preprocess,
    eval_transform,
    train_transform,
)

RED, WHITE = (200, 30, 40), (255, 255, 255)


def gradient(width=40, height=24):
    """A smooth RGB picture, no two corners of which are alike."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    return Image.fromarray(np.uint8(np.stack([255 * x, 255 * y, 255 * (1 - x)], 2)))


def difference(first, second):
    return np.abs(np.asarray(first, dtype=float) - np.asarray(second, dtype=float)).max()


# --- transforms ---


@pytest.mark.parametrize("size", [(500, 333), (333, 500), (224, 224), (60, 50), (301, 1000)])
def test_crop_equals_the_references_resize_and_centre_crop(size):
    noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)
    image = Image.fromarray(noise)
    reference = v2.Compose([v2.Resize(256), v2.CenterCrop(224)])(image)
    assert difference(Fit(Preprocess())(image), reference) <= 1  # of 255: rounding


def test_squash_takes_the_whole_photo():
    image = gradient(400, 100)
    assert difference(Fit(Preprocess(resize_mode="squash"))(image), image.resize((224, 224))) < 12


@pytest.mark.parametrize("size", [(300, 200), (97, 331)])
def test_squash_with_a_margin_equals_resize_and_centre_crop(size):
    noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)
    image = Image.fromarray(noise)
    reference = v2.Compose(
        [v2.Resize((256, 256), v2.InterpolationMode.BICUBIC), v2.CenterCrop(224)]
    )
    ours = Fit(Preprocess(resize_mode="squash", resize=256, interpolation="bicubic"))(image)
    assert difference(ours, reference(image)) <= 1


def test_pad_with_a_margin_takes_the_centre():
    image = Image.new("RGB", (64, 32), RED)
    padded = Fit(Preprocess(img_size=32, resize_mode="pad", resize=40, mean=(0.2, 0.4, 0.6)))(image)
    assert padded.size == (32, 32)
    assert padded.getpixel((0, 6)) == padded.getpixel((31, 25)) == RED  # 40 x 20 of the photo
    assert padded.getpixel((0, 5)) == padded.getpixel((31, 26)) == (51, 102, 153)


def test_preparation_is_said_in_words_and_keeps_its_share_at_another_size():
    assert Preprocess().words == "short side to 256 pixels, centre 224, bilinear"
    assert Preprocess(resize_mode="squash").words == "both sides to 224 pixels, bilinear"
    larger = Preprocess(224, resize=248, interpolation="bicubic").of_size(448)
    assert larger.words == "short side to 496 pixels, centre 448, bicubic"
    assert Preprocess(224).of_size(384).short_side == 439


def test_pad_keeps_proportions_and_fills_with_the_mean():
    fit = Fit(Preprocess(img_size=32, resize_mode="pad", mean=(0.2, 0.4, 0.6)))
    padded = fit(Image.new("RGB", (64, 32), RED))
    assert padded.getpixel((0, 0)) == padded.getpixel((31, 31)) == (51, 102, 153)
    assert padded.getpixel((0, 8)) == padded.getpixel((31, 23)) == RED
    assert padded.getpixel((0, 7)) == padded.getpixel((31, 24)) == (51, 102, 153)


@pytest.mark.parametrize("size", [(1, 1), (1, 10_000), (10_000, 1), (2, 3)])
@pytest.mark.parametrize("mode", RESIZE_MODES)
def test_extreme_sizes_are_resized_at_small_cost(size, mode):
    preprocess = Preprocess(img_size=48, resize_mode=mode)
    image = Image.new("RGB", size, RED)
    for transform in (eval_transform(preprocess), train_transform(preprocess)):
        tensor = transform(image)
        assert tensor.shape == (3, 48, 48)
        assert tensor.isfinite().all()


def test_tensor_is_normalised_by_mean_and_std():
    preprocess = Preprocess(img_size=16, mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.5))
    tensor = eval_transform(preprocess)(Image.new("RGB", (20, 20), (255, 0, 51)))
    assert tensor.dtype == torch.float32
    torch.testing.assert_close(tensor[:, 3, 3], torch.tensor([5.0, -2.0, -0.2]))


def test_none_is_the_evaluation_transform():
    preprocess = Preprocess(img_size=24)
    image = gradient()
    assert torch.equal(
        train_transform(preprocess, "none")(image), eval_transform(preprocess)(image)
    )


@pytest.mark.parametrize("aug", ["basic", "trivial", "rand"])
def test_augmentation_follows_torchs_generator(aug):
    transform = train_transform(Preprocess(img_size=24), aug, reprob=0.5)
    image = gradient(80, 60)
    torch.manual_seed(1)
    first, second = transform(image), transform(image)
    torch.manual_seed(1)
    assert torch.equal(transform(image), first)
    assert not torch.equal(first, second)
    assert first.shape == (3, 24, 24)


def test_erasing_fills_with_the_mean_colour():
    transform = train_transform(Preprocess(img_size=24), "none", reprob=1.0)
    assert (transform(Image.new("RGB", (24, 24), WHITE)) == 0).any()


@pytest.mark.parametrize("aug", AUGMENTATIONS)
def test_bytes_normalised_later_are_the_same_to_the_last_bit(aug):
    preprocess = Preprocess(img_size=24, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    torch.manual_seed(1)
    expected = train_transform(preprocess, aug)(gradient())
    torch.manual_seed(1)
    as_bytes = train_transform(preprocess, aug, as_bytes=True)(gradient())
    assert as_bytes.dtype == torch.uint8
    assert torch.equal(Normalise(preprocess)(as_bytes[None])[0], expected)


def test_bytes_are_erased_with_the_mean_colour():
    preprocess = Preprocess(img_size=24, mean=(0.2, 0.4, 0.6))
    erased = train_transform(preprocess, "none", reprob=1.0, as_bytes=True)
    colours = erased(Image.new("RGB", (24, 24), WHITE)).flatten(1).unique(dim=1).T.tolist()
    assert colours == [[51, 102, 153], [255, 255, 255]]


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_every_interpolation_works_everywhere(interpolation):
    preprocess = Preprocess(img_size=24, interpolation=interpolation)
    for transform in (eval_transform(preprocess), train_transform(preprocess, "rand")):
        assert transform(gradient()).shape == (3, 24, 24)


def test_transforms_can_be_pickled_for_spawned_workers():
    transform = pickle.loads(pickle.dumps(train_transform(Preprocess(img_size=24), "trivial", 0.1)))
    assert transform(gradient()).shape == (3, 24, 24)
    assert transform.min_size == 96


# --- how much of a photo they need ---


def test_transforms_say_how_much_of_a_photo_they_need():
    assert eval_transform(Preprocess()).min_size == 256
    assert eval_transform(Preprocess(resize_mode="squash")).min_size == 224
    assert train_transform(Preprocess(), "none").min_size == 256
    assert train_transform(Preprocess(), "basic").min_size == 4 * 224


def test_no_random_crop_is_enlarged_by_the_reduced_scale():
    """The smallest crop of a photo decoded at the least size still has img_size pixels a side."""
    preprocess = Preprocess(img_size=32)
    transform = train_transform(preprocess)
    crop, side = transform.transforms[0], transform.min_size
    for _ in range(500):
        picked = crop.make_params([Image.new("RGB", (side, side))])
        assert min(picked["width"], picked["height"]) >= 0.95 * preprocess.img_size


# --- Preprocess ---


def test_preprocess_travels_through_json():
    preprocess = Preprocess(384, "pad", mean=(0.1, 0.2, 0.3), interpolation="bicubic")
    assert Preprocess.from_dict(json.loads(json.dumps(preprocess.to_dict()))) == preprocess


def test_short_side_follows_the_reference():
    assert Preprocess().short_side == 256
    assert Preprocess(384).short_side == 439
    assert Preprocess(224, resize=248).short_side == 248


@pytest.mark.parametrize(
    "values",
    [
        {"img_size": 0},
        {"img_size": 10**9},
        {"img_size": 224.5},
        {"img_size": True},
        {"resize_mode": "stretch"},
        {"resize": 100},
        {"resize": 10**9},
        {"mean": (0.5, 0.5)},
        {"mean": "abc"},
        {"mean": 0.5},
        {"std": (0.5, 0.0, 0.5)},
        {"std": (float("nan"),) * 3},
        {"interpolation": "magic"},
        {"colour": "blue"},
    ],
)
def test_nonsense_in_a_checkpoint_is_refused_with_a_sentence(values):
    with pytest.raises(ValueError, match=r"must be|not a description"):
        Preprocess.from_dict(values)


def test_unknown_augmentation_is_refused():
    with pytest.raises(ValueError, match="none, basic, trivial, rand"):
        train_transform(Preprocess(), "wild")
    with pytest.raises(ValueError, match="between 0 and 1"):
        train_transform(Preprocess(), reprob=1.5)


def test_the_view_is_what_the_model_sees_of_a_photo():
    """In shares of the photo's sides: 60 x 40 pixels, of which 20 x 20 are wanted."""
    crop = Fit(Preprocess(img_size=20, resize=40)).view(60, 40)
    assert crop == pytest.approx((20 / 60, 10 / 40, 40 / 60, 30 / 40))
    assert Fit(Preprocess(img_size=20, resize_mode="squash")).view(60, 40) == (0, 0, 1, 1)
    pad = Fit(Preprocess(img_size=30, resize_mode="pad")).view(60, 40)
    assert pad == pytest.approx((0, -5 / 20, 1, 25 / 20))  # 30 x 20 in the middle of 30 x 30
