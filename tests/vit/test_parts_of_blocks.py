"""Gates, pooling, attention with biases, and a config's cross checks, by hand."""

import pytest
import torch
import torch.nn.functional as F

from vit.attention import Attention
from vit.config import CHOICES, OF_FAMILY, SWITCHES, ViTConfig
from vit.mlps import ACTIVATIONS, SwiGlu, first_maps, matching_hidden
from vit.parts import norm_of
from vit.pooling import AttentionPool, reading

NORM = norm_of("layer", 1e-6)
X = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(1))


def test_gates_are_the_first_half_of_a_packed_map():
    packed, split = SwiGlu(12, 7, norm=NORM), SwiGlu(12, 7, split=True, norm=NORM)
    split.fc1_g.load_state_dict({k: v[:7] for k, v in packed.fc1.state_dict().items()})
    split.fc1_x.load_state_dict({k: v[7:] for k, v in packed.fc1.state_dict().items()})
    split.fc2.load_state_dict(packed.fc2.state_dict())
    gate, value = packed.fc1(X)[..., :7], packed.fc1(X)[..., 7:]
    wanted = packed.fc2(F.layer_norm(gate * gate.sigmoid() * value, (7,), eps=1e-6))
    torch.testing.assert_close(packed(X), wanted)
    torch.testing.assert_close(split(X), wanted)
    assert [len(first_maps(mlp)) for mlp in (packed, split)] == [1, 2]


def test_a_gated_kan_of_matching_width_has_the_parameters_of_its_mlp():
    kan = {"kind": "kan", "rank": 4, "groups": 1, "grid": 5, "order": 3, "grid_range": (-1, 1)}
    width = matching_hidden(64, 256, swiglu="packed", **kan)
    assert 0 < width < 256


def test_the_quick_gelu_is_a_scaled_sigmoid():
    torch.testing.assert_close(ACTIVATIONS["quick_gelu"]()(X), X * torch.sigmoid(1.702 * X))


def test_a_latent_query_attends_to_all_tokens():
    pool = AttentionPool(12, 3, 8, NORM, "gelu")
    torch.nn.init.normal_(pool.latent)
    k, v = pool.kv(X).chunk(2, -1)
    mixed = []
    for head in range(3):
        part = slice(4 * head, 4 * head + 4)
        logits = pool.q(pool.latent)[..., part] @ k[..., part].transpose(1, 2) / 2
        mixed.append(logits.softmax(-1) @ v[..., part])
    pooled = pool.proj(torch.cat(mixed, -1))
    torch.testing.assert_close(pool(X), pooled + pool.mlp(pool.norm(pooled)))


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("token", [1, 0, 0, 0, 0]),
        ("avg", [0, 0, 1 / 3, 1 / 3, 1 / 3]),
        ("token+avg", [1 / 2, 0, 1 / 6, 1 / 6, 1 / 6]),
    ],
)
def test_explanations_start_from_what_the_head_reads(kind, wanted):
    torch.testing.assert_close(
        reading(kind, 5, 1, 2, False), torch.tensor(wanted, dtype=torch.float)
    )


def test_biases_are_added_to_the_logits_of_attention():
    attn = Attention(12, 3, 4, NORM, relative_grid=2, qk_norm=True, inner_norm=True)
    torch.nn.init.normal_(attn.relative_position_bias_table)
    shared = torch.randn(3, 5, 5)
    q, k, v = attn.split(attn.qkv(X))
    weights = (q @ k.transpose(-2, -1) / 2 + attn.bias() + shared).softmax(-1)
    wanted = attn.proj(attn.norm((weights @ v).transpose(1, 2).flatten(2)))
    torch.testing.assert_close(attn(X, None, None, shared), wanted)
    torch.testing.assert_close(attn(X, 2, None, shared), wanted[:, :2])


WRONG = {
    "no token to read": ({"class_token": False}, "global_pool token needs a class token"),
    "no token to distil": (
        {"class_token": False, "distilled": True, "global_pool": "avg"}, "distilled needs a class",
    ),
    "distilled means": ({"distilled": True, "global_pool": "avg"}, "distilled needs global_pool"),
    "odd heads": ({"rope": "cat", "embed_dim": 18, "num_heads": 3}, "heads of a multiple of 4"),
    "biases of registers": ({"rel_pos": "block", "reg_tokens": 2}, "rel_pos needs a class token"),
    "heads of the pool": ({"global_pool": "map", "pool_heads": 7}, "no multiple|not a multiple"),
    "cold": ({"rope_temperature": 0.0}, "rope_temperature must be above 0"),
    "words": ({"rope_grid_offset": "1"}, "rope_grid_offset must be a number"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG)
def test_parts_that_do_not_fit_are_named(case):
    sizes, words = case
    with pytest.raises(ValueError, match=words):
        ViTConfig(**sizes)


@pytest.mark.parametrize("field", [*SWITCHES, *CHOICES])
def test_every_field_of_a_kind_refuses_what_it_does_not_know(field):
    for value in ("other", 3, None, ["layer"]):
        with pytest.raises(ValueError, match=f"^{field} must be"):
            ViTConfig(**{field: value})


def test_what_a_file_brings_along_are_fields_of_the_config():
    assert set(OF_FAMILY) <= set(ViTConfig.__dataclass_fields__)
