"""What must be known of a weights file beyond its tensors: tables, to which rows are added.

`FACTS` names every fact that changes logits, with its spellings in the configs of timm, Hugging
Face and training scripts: those that leave no trace in a shape, and those that tensors tell and
that must not be stated otherwise. What a model's name tells of them stands in `architectures`;
`HARMLESS`, `RELATIVES` and `HEAD_NAMES` what becomes of tensors that our model has no place for.
`facts` and `ledger` read them. Keys that stand in no table are ignored, and listed by
`pretrained.py FILE`.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Fact:
    """A fact that changes logits.

    name: by which `architectures` and reports call it.
    keys: its spellings.
    takes: the values that our model follows, words in small letters. Empty with `sets`: all.
    sets: the field of `ViTConfig` or `Preprocess` that takes the value, translated by `means`.
    default: what is assumed where nothing tells, by format ("" for the others); None if shapes or
        other tables tell.
    needs: it counts only where the same file has one of these keys too.
    headless: values that matter to a head alone: a file without one may have them.
    plain: what timm's name of a known model tells where its family has nothing else to say.
    seen: the field of `ViTConfig` that tensors tell, "field:value" for one of its values: what is
        stated may say no other.
    square: one side, or two that are equal.
    """

    name: str
    keys: tuple[str, ...]
    takes: tuple = ()
    sets: str | None = None
    means: dict = field(default_factory=dict)
    default: dict = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    headless: tuple = ()
    plain: object = None
    seen: str = ""
    square: bool = False


NO = (False, 0, "none", "no", "")
YES = (True, 1)
HUGGING_FACE = ("transformers_version", "architectures", "hidden_size")
DINOV3 = ("DINOv3", "Hugging Face DINOv3")  # formats that no other family has
FACTS = (
    Fact(
        "attention heads",
        ("num_heads", "num_attention_heads", "n_heads", "n_head"),
        sets="num_heads",
    ),
    Fact(
        "norm epsilon",
        ("layer_norm_eps", "layernorm_eps", "norm_eps", "ln_eps"),
        sets="norm_eps",
        plain=1e-6,
        default={"Hugging Face": 1e-12, "Hugging Face CLIP": 1e-5, "OpenCLIP": 1e-5, "": 1e-6}
        | dict.fromkeys(DINOV3, 1e-5),
    ),
    Fact(
        "kind of norm",
        ("norm_layer", "norm_type"),
        takes=(
            "layer", "layernorm", "layer_norm", "nn.layernorm", "ln", "", "rms", "rmsnorm",
            "rms_norm",
        ),
        sets="norm",
        means=dict.fromkeys(("layernorm", "layer_norm", "nn.layernorm", "ln", ""), "layer")
        | dict.fromkeys(("rmsnorm", "rms_norm"), "rms"),
        plain="layer",
    ),
    Fact(
        "activation",
        ("hidden_act", "act_layer", "activation", "activation_function", "act_fn", "quick_gelu"),
        takes=(
            True, False,
            "gelu", "gelu_python", "nn.gelu", "torch.nn.gelu", "", "gelu_tanh", "gelu_new",
            "gelu_pytorch_tanh", "quick_gelu", "quickgelu", "silu", "swish", "nn.silu", "relu",
            "nn.relu",
        ),
        sets="act",
        means=dict.fromkeys(("gelu_python", "nn.gelu", "torch.nn.gelu", ""), "gelu")
        | dict.fromkeys(("gelu_new", "gelu_pytorch_tanh"), "gelu_tanh")
        | dict.fromkeys(("swish", "nn.silu"), "silu")
        | {"quickgelu": "quick_gelu", "nn.relu": "relu", True: "quick_gelu", False: "gelu"},
        plain="gelu",
        default={
            "Hugging Face CLIP": "quick_gelu", "Hugging Face SigLIP": "gelu_tanh", "": "gelu",
        },
    ),
    Fact(
        "pooling",
        ("global_pool", "gp", "pool_type", "pooling", "classifier_pool"),
        takes=(
            "token", "tok", "cls", "cls_token", "class_token", "first", False, "avg", "mean", True,
            "map", "token+avg",
        ),
        sets="global_pool",
        means=dict.fromkeys(("tok", "cls", "cls_token", "class_token", "first", False), "token")
        | {"mean": "avg", True: "avg"},  # MAE's scripts say yes or no
        headless=("",),
    ),
    Fact(
        "pooling by the mean",
        ("use_mean_pooling",),
        takes=(*NO, *YES),
        sets="mean_pooling",
        means=dict.fromkeys(NO, False) | dict.fromkeys(YES, True),
    ),
    Fact(
        "special tokens in the pooling",
        ("pool_include_prefix",),
        takes=(*NO, *YES),
        sets="pool_prefix",
        means=dict.fromkeys(NO, False) | dict.fromkeys(YES, True),
    ),
    Fact("special tokens in the pooling by attention", (), sets="map_prefix"),
    Fact("heads of the pooling", ("attn_pool_num_heads",), sets="pool_heads"),
    Fact("class token", ("class_token", "use_cls_token", "has_class_token"), seen="class_token"),
    Fact(
        "positions",
        ("pos_embed", "position_embedding_type", "pos_embed_type"),
        takes=(
            "learn", "learned", "learnable", "absolute", "abs", "sincos", "sincos2d", *YES, *NO,
        ),
        seen="pos_embed",
    ),
    Fact(
        "absolute positions",
        ("use_abs_pos_emb", "use_absolute_position_embeddings"),
        seen="pos_embed",
    ),
    Fact(
        "rotary positions",
        ("use_rot_pos_emb", "use_rope", "rope"),
        takes=(*NO, *YES),
        sets="rotary",
        means=dict.fromkeys(NO, False) | dict.fromkeys(YES, True),
        plain=False,
        default={"": "none"} | dict.fromkeys(DINOV3, True),
    ),
    Fact(
        "kind of rotary positions",
        ("rope_type",),
        takes=("cat", "dinov3", "mixed"),
        sets="rope",
        default=dict.fromkeys(DINOV3, "dinov3"),
    ),
    Fact(
        "rotary temperature",
        ("rope_temperature", "rope_theta"),
        sets="rope_temperature",
        default=dict.fromkeys(DINOV3, 100.0),
    ),
    Fact(
        "rotary pairs",
        ("rope_rotate_half",),
        sets="rope_rotate_half",
        default=dict.fromkeys(DINOV3, True),
    ),
    Fact("rotary axes", ("rope_grid_indexing",), ("ij", "xy"), sets="rope_grid_indexing"),
    Fact("rotary offset", ("rope_grid_offset",), sets="rope_grid_offset"),
    Fact("rotary reference", ("ref_feat_shape",), sets="rope_ref_grid", square=True),
    Fact("scaling of rotary positions", ("rope_scaling",), NO),
    Fact(
        "relative positions in blocks",
        ("use_rel_pos_bias", "use_relative_position_bias"),
        seen="rel_pos:block",
    ),
    Fact(
        "relative positions of all blocks",
        ("use_shared_rel_pos_bias", "use_shared_relative_position_bias"),
        seen="rel_pos:shared",
    ),
    Fact("relative positions", ("use_rel_pos", "rel_pos_type", "rel_pos_dim"), NO),
    Fact("positions of patches alone", ("no_embed_class",), sets="no_embed_class"),
    Fact("sides of the image", ("img_size", "image_size"), sets="img_size", square=True),
    Fact("sides of a patch", ("patch_size",), square=True),
    Fact("norm of the patches", ("embed_norm_layer", "patch_norm"), seen="patch_norm"),
    Fact(
        "norm before the blocks",
        ("pre_norm", "use_pre_transformer_norm", "norm_pre", "use_pre_norm"),
        seen="norm_pre",
    ),
    Fact("norm after the blocks", ("final_norm",), seen="last_norm"),
    Fact("norm of all tokens", ("use_post_transformer_norm",), seen="final_norm"),
    Fact("norm after pooling", ("fc_norm", "use_fc_norm"), seen="fc_norm"),
    Fact("norm behind the pooling", ("final_ln_after_pool",), NO),
    Fact("norm after each part", ("use_post_norm", "post_norm", "res_post_norm"), NO),
    Fact("norm first in a block", ("norm_first",), YES),
    Fact(
        "norm of queries and keys",
        ("qk_norm", "use_qk_norm", "qk_layernorm", "use_qkv_norm", "qk_normalization"),
        seen="qk_norm",
    ),
    Fact("norm inside attention", ("scale_attn_norm", "scale_attn_inner"), seen="attn_norm"),
    Fact("norm inside the MLP", ("scale_mlp_norm", "scale_mlp"), seen="mlp_norm"),
    Fact("scale of attention", ("qk_scale", "attn_scale"), ("",)),
    Fact("masked attention", ("is_causal", "causal", "is_decoder"), NO),
    Fact("attention in windows", ("sliding_window", "attention_window"), NO),
    Fact("kind of attention", ("attn_layer",), ("", "attention", "attn", "mha")),
    Fact("kind of block", ("block_fn", "block_type"), ("", "block")),
    Fact(
        "kind of MLP",
        ("mlp_layer", "mlp_type", "ffn_layer"),
        ("", "mlp", "swiglu", "swiglupacked", "swiglufused"),
    ),
    Fact(
        "gated MLP",
        ("swiglu_mlp", "use_swiglu_ffn", "use_gated_mlp", "gated_mlp"),
        seen="swiglu",
    ),
    Fact("kind of patch projection", ("embed_layer",), ("", "patchembed", "patch_embed")),
    Fact("hybrid stem", ("backbone_config", "hybrid_backbone"), NO),
    Fact("parallel blocks", ("num_parallel", "parallel_blocks", "use_parallel"), (*NO, 1)),
    Fact(
        "kind of model",
        ("model_type",),
        (
            "vit", "deit", "dinov2", "dinov2_with_registers", "vit_msn", "vit_mae", "timm_wrapper",
            "dinov3_vit", "beit", "data2vec-vision", "clip", "clip_vision_model", "siglip",
            "siglip_vision_model", "metaclip_2", "metaclip_2_vision_model", "ijepa",
        ),
        needs=HUGGING_FACE,
    ),
    Fact(
        "answers",
        ("problem_type", "multi_label", "multilabel"),
        takes=(
            "single_label_classification", "multi_label_classification", "regression", True, False,
        ),
        sets="answers",
        means={
            "single_label_classification": "softmax", False: "softmax",
            "multi_label_classification": "sigmoid", True: "sigmoid",
        },
        default={"": "softmax"},
    ),
    Fact("rescaling of pixels", ("do_rescale",), YES),
    Fact("scale of pixels", ("rescale_factor",), (1 / 255, 0.00392156862745098, 0.003921568627451)),
    Fact("normalisation of pixels", ("do_normalize",), YES),
    Fact("mean", ("mean", "image_mean"), sets="mean"),
    Fact("std", ("std", "image_std"), sets="std"),
)  # fmt: skip

# Dicts inside a config or a checkpoint whose keys are facts of the model as well.
CONTAINERS = (
    "model_args", "model_kwargs", "model_config", "model_cfg", "pretrained_cfg", "default_cfg",
    "hyper_parameters", "hparams", "args", "opt", "config", "cfg", "options", "kwargs", "params",
    "model", "model_params", "vit", "vit_config", "vision_config",
    "image_processor", "vision_cfg", "preprocess_cfg",
)  # fmt: skip
# Where a model's name stands. Under the first the name is timm's and must be known; under the
# others it may be anybody's, and what it does not tell is told elsewhere or assumed.
ARCHITECTURE = "architecture"
MODEL_NAMES = (
    ARCHITECTURE,
    "arch",
    "model",
    "model_name",
    "timm_model",
    "timm_model_name",
    "backbone",
    "variant",
)
# Such a name inside the name of a file.
IN_FILE_NAME = (
    r"(?:^|[^a-z])((?:[a-z]*vit\d?|deit\d?|beit\w*?|eva\w*?|aimv2)_\w*patch\d+\w*"
    r"|flexivit_[a-z]+|test_vit\d?|dinov3_vit\w+)(\.(?!safetensors|pth|pt|bin|npz|ckpt)[a-z]\w*)?"
)
# (pattern in a model's or file's name, family that normalises its photos), the first that matches.
NORMALISATION = (
    (r"deit|dino|mae|vit_[blh]_\d\d-", "imagenet"),
    (r"augreg|i?n?21k|jx_vit|google|vit_\w+_patch", "half"),
)

# Names of a file's classes: a list or {number: name}; the second are {name: number}.
CLASS_LISTS = (
    "classes", "class_names", "id2label", "label_names", "idx_to_class", "index_to_class", "labels",
)  # fmt: skip
CLASS_NUMBERS = ("class_to_idx", "class_to_index", "label2id")

# --- tensors ------------------------------------------------------------------------------------

# (pattern, reason): tensors without which the classifier computes the same.
HARMLESS = (
    (r"(?:^|\.)mask_token$", "stands for hidden patches in pretraining"),
    (r"(?:^|\.)decoder(?:_\w+)?\.|(?:^|\.)decoder_\w+$", "a decoder of pretraining"),
    (
        r"(?:^|\.)(?:dino_head|ibot_head|koleo|projection_head|proj_head|projector|predictor"
        r"|contrastive_head|mim_head)\.|(?:^|\.)head\.(?:mlp\.\d|last_layer\.)|(?:^|\.)prototypes\.",
        "a projection head of pretraining",
    ),
    (r"(?:^|\.)pooler\.dense\.", "a pooler, which no classifier of the library reads"),
    (
        r"^text_model\.|^text_projection\b|^(?:text\.)?(?:transformer\.resblocks|token_embedding"
        r"|positional_embedding|ln_final|cls_emb|attn_mask)\b|^text\.(?:transformer|text_projection)\b",
        "the text tower, which reads no photos",
    ),
    (
        r"^visual_projection\.|^visual\.proj$|^visual\.head\.proj\.",
        "leads to the space shared with texts, which no classifier reads",
    ),
    (r"^logit_(?:scale|bias)$", "compares photos with texts"),
    (r"(?:^|\.)lm_head\.", "predicts hidden patches in pretraining"),
    (r"\.relative_position_index$", "an index that the model makes itself"),
    (
        r"(?:^|\.)(?:relative_position_index|relative_coords_table)$"
        r"|(?:^|\.)rope(?:_embed(?:dings)?)?\.(?:freqs_cos|freqs_sin|periods|inv_freq|bands)$",
        "a table of places, which is computed here",
    ),
    (r"(?:^|\.)(?:position_ids|total_ops|total_params|n_averaged|num_updates)$", "a counter"),
    (r"(?:^|\.)(?:queue|queue_ptr|center)$|^dino_loss\.|^ibot_\w*loss\.", "a loss of pretraining"),
    (r"^(?:criterion|loss|loss_fn|loss_func)\.", "belongs to the loss"),
    (r"^(?:train|val|valid|test)?_?(?:acc\w*|metrics?|f1|auroc|confmat)\.", "belongs to a metric"),
    (r"^(?:optimizer|optim|scheduler|scaler)\.", "belongs to the optimiser"),
)
# (pattern, words, what to do): what a tensor that our model has no place for tells of the model.
WITHOUT = "train.py --allow-partial trains without them"
PLAIN_ONE = "take a plain Vision Transformer (train.py --list-models)"
RELATIVES = (
    (r"lora_", "has LoRA adapters, and nothing says their rank and scale",
     "put the adapter_config.json that peft wrote beside them, or merge them (merge_and_unload) "
     "and save the model"),
    (r"\.base_layer\.", "has layers under adapters", "merge them (merge_and_unload), save again"),
    (r"patch_embed\.backbone\.|embedder\.", "cuts its patches from a convolutional network",
     PLAIN_ONE),
    (r"patch_embed\.conv\d", "cuts its patches by several convolutions", PLAIN_ONE),
    (r"\.(?:attns|ffns|in_proj|attn_out_proj)\.", "has attention and MLP side by side", PLAIN_ONE),
    (r"\.lambda_|\.sub_norm\.", "has differential attention", PLAIN_ONE),
    (r"\.attn\.gate\.", "has gates behind its attention", WITHOUT),
    (r"rel_pos\.|rel_pos_[hw]$", "has relative positions of another kind than BEiT's", PLAIN_ONE),
    (r"weight_numerator", "has rational activations (KAT)",
     "take the ViT that it was made from and give --mlp gkan"),
    (r"parametrizations|weight_[gv]$", "has weights in parts (weight norm)",
     "join them (remove_parametrizations) and save again"),
    (r"(?:weight_scale|weight\.absmax|qweight|_packed_params)", "has quantised weights",
     "save it before it is quantised"),
)  # fmt: skip
# Modules under which scripts keep a classifier, one linear layer, where timm has `head`.
HEAD_NAMES = (
    r"(?:\w+\.)*?(?:\w*heads?|\w*classifier\w*|fc\d*|\w*linear\w*|lin|logits?|out(?:put)?"
    r"(?:_layer)?|cls|\d+)(?:\.(?:\d+|heads?|fc\d*|linear|layer|classifier|out|mlp|net))*"
)
# Parts of the name before the model where a file holds several; an earlier one is taken.
PREFERRED = ("ema", "teacher", "base_encoder", "encoder_q", "target_encoder")
