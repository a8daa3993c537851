"""Rotary positions and relative biases against slow plain versions."""

import math

import pytest
import torch

from vit.positions import Rotary, relative_bias, relative_rows, turned

OPTIONS = {
    "temperature": 100.0, "half": False, "indexing": "ij", "offset": 0.0, "reference": None,
}  # fmt: skip


def rotary(kind="cat", grid=3, prefix=2, **options) -> Rotary:
    return Rotary(kind, 2, 3, 8, grid, prefix, **OPTIONS | options)


def test_angles_are_place_times_rate_along_either_axis():
    sine, cosine = rotary(offset=1.0, reference=6)(torch.device("cpu"))[0]
    places = [(2 * (row + 1), 2 * (column + 1)) for row in range(3) for column in range(3)]
    for token, (down, right) in enumerate(places, start=2):
        angles = [down, down / 10, right, right / 10]  # temperature 100: rates 1 and 1 / 10
        wanted = torch.tensor([a for a in angles for _ in range(2)])
        torch.testing.assert_close(sine[0, token], wanted.sin())
        torch.testing.assert_close(cosine[0, token], wanted.cos())


def test_dinov3_places_lie_between_minus_and_plus_one():
    sine, _ = rotary("dinov3", half=True, indexing="xy")(torch.device("cpu"))[1]
    right, down = -2 / 3, 0.0  # the patch left in the middle row
    wanted = torch.tensor([right, right / 10, down, down / 10] * 2) * 2 * math.pi
    torch.testing.assert_close(sine[0, 2 + 3], wanted.sin())


@pytest.mark.parametrize("kind", ["cat", "dinov3", "mixed"])
@pytest.mark.parametrize("half", [False, True])
def test_what_meets_depends_on_the_distance_alone_and_special_tokens_stay(kind, half):
    model = rotary(kind, half=half)
    model.init_weights()
    turn = model(torch.device("cpu"))[1]
    q, k = torch.randn(1, 3, 1, 8), torch.randn(1, 3, 1, 8)
    one, other = (turned(x.expand(-1, -1, 11, -1), turn, half) for x in (q, k))
    assert torch.equal(one[:, :, :2], q.expand(-1, -1, 2, -1))
    torch.testing.assert_close(one.norm(dim=-1), q.norm(dim=-1).expand(-1, -1, 11))
    logits = (one @ other.transpose(-2, -1))[:, :, 2:, 2:].unflatten(2, (3, 3)).unflatten(4, (3, 3))
    torch.testing.assert_close(logits[:, :, 0, 0, 1, 2], logits[:, :, 1, 0, 2, 2])
    assert not torch.allclose(logits[:, :, 0, 0, 1, 2], logits[:, :, 0, 0, 2, 2])


def test_half_and_neighbouring_pairs_turn_alike():
    x = torch.randn(1, 3, 11, 8)
    order = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])  # first of each pair, then the second
    near, far = (rotary(half=half)(torch.device("cpu"))[0] for half in (False, True))
    torch.testing.assert_close(turned(x, near, False)[..., order], turned(x[..., order], far, True))


def test_relative_biases_are_looked_up_by_offset():
    grid, heads = 3, 2
    table = torch.randn(relative_rows(grid), heads)
    bias = relative_bias(table, grid)
    assert bias.shape == (2, 10, 10)
    for p in range(9):
        for q in range(9):
            down, right = p // 3 - q // 3 + 2, p % 3 - q % 3 + 2
            assert torch.equal(bias[:, 1 + p, 1 + q], table[down * 5 + right])
    assert torch.equal(bias[:, 0, 1:], table[-3][:, None].expand(2, 9))
    assert torch.equal(bias[:, 1:, 0], table[-2][:, None].expand(2, 9))
    assert torch.equal(bias[:, 0, 0], table[-1])
