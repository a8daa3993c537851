"""What must be known of a weights file beyond its tensors: tables, to which rows are added.

`FACTS` names every fact that changes logits and leaves no trace in a shape, with its spellings in
the configs of timm, Hugging Face and training scripts; `ARCHITECTURES` what a model's name tells;
`HARMLESS`, `RELATIVES` and `HEAD_NAMES` what becomes of tensors that our model has no place for.
`facts` and `ledger` read them. Keys that stand in no table are ignored, and listed by
`pretrained.py FILE`.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Fact:
    """A fact that changes logits.

    name: by which `ARCHITECTURES` and reports call it.
    keys: its spellings.
    takes: the values that our model follows, words in small letters. Empty with `sets`: all.
    sets: the field of `ViTConfig` or `Preprocess` that takes the value, translated by `means`.
    default: what is assumed where nothing tells, by format ("" for the others); None if shapes or
        other tables tell.
    needs: it counts only where the same file has one of these keys too.
    headless: values that matter to a head alone: a file without one may have them.
    """

    name: str
    keys: tuple[str, ...]
    takes: tuple = ()
    sets: str | None = None
    means: dict = field(default_factory=dict)
    default: dict = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    headless: tuple = ()
    square: bool = False  # one side, or two that are equal


NO = (False, 0, "none", "no", "")
YES = (True, 1)
HUGGING_FACE = ("transformers_version", "architectures", "hidden_size")
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
        default={"Hugging Face": 1e-12, "": 1e-6},
    ),
    Fact(
        "activation",
        ("hidden_act", "act_layer", "activation", "activation_function", "act_fn"),
        takes=("gelu", "gelu_python", "nn.gelu", "torch.nn.gelu", ""),
        default={"": "gelu"},
    ),
    Fact(
        "pooling",
        ("global_pool", "gp", "pool_type", "pooling", "classifier_pool"),
        takes=("token", "tok", "cls", "cls_token", "class_token", "first", False),
        default={"": "token"},
        headless=("",),
    ),
    Fact("pooling by the mean", ("use_mean_pooling",), NO),
    Fact("class token", ("class_token", "use_cls_token", "has_class_token"), YES),
    Fact(
        "positions",
        ("pos_embed", "position_embedding_type", "pos_embed_type"),
        takes=("learn", "learned", "learnable", "absolute", "abs", "sincos", "sincos2d", *YES),
        default={"": "learned"},
    ),
    Fact("absolute positions", ("use_abs_pos_emb", "use_absolute_position_embeddings"), YES),
    Fact(
        "rotary positions",
        ("use_rot_pos_emb", "use_rope", "rope", "rope_theta", "rope_parameters", "rope_scaling"),
        NO,
    ),
    Fact(
        "relative positions",
        (
            "use_rel_pos_bias", "use_shared_rel_pos_bias", "use_relative_position_bias",
            "use_shared_relative_position_bias", "use_rel_pos", "rel_pos_type", "rel_pos_dim",
        ),
        NO,
    ),
    Fact("positions of patches alone", ("no_embed_class",), sets="no_embed_class"),
    Fact("sides of the image", ("img_size", "image_size"), square=True),
    Fact("sides of a patch", ("patch_size",), square=True),
    Fact(
        "kind of norm",
        ("norm_layer", "norm_type"),
        ("", "layernorm", "layer_norm", "nn.layernorm", "ln"),
    ),
    Fact("norm of the patches", ("embed_norm_layer", "patch_norm"), NO),
    Fact(
        "norm before the blocks",
        ("pre_norm", "use_pre_transformer_norm", "norm_pre", "use_pre_norm"),
        NO,
    ),
    Fact("norm after the blocks", ("final_norm", "use_post_transformer_norm"), YES),
    Fact("norm after pooling", ("fc_norm", "use_fc_norm"), NO),
    Fact("norm after each part", ("use_post_norm", "post_norm", "res_post_norm"), NO),
    Fact("norm first in a block", ("norm_first",), YES),
    Fact(
        "norm of queries and keys",
        ("qk_norm", "use_qk_norm", "qk_layernorm", "use_qkv_norm", "qk_normalization"),
        NO,
    ),
    Fact(
        "norm inside attention or MLP",
        ("scale_attn_norm", "scale_mlp_norm", "scale_attn_inner", "scale_mlp"),
        NO,
    ),
    Fact("scale of attention", ("qk_scale", "attn_scale"), ("",)),
    Fact("masked attention", ("is_causal", "causal", "is_decoder"), NO),
    Fact("attention in windows", ("sliding_window", "attention_window"), NO),
    Fact("kind of attention", ("attn_layer",), ("", "attention", "attn", "mha")),
    Fact("kind of block", ("block_fn", "block_type"), ("", "block")),
    Fact("kind of MLP", ("mlp_layer", "mlp_type", "ffn_layer"), ("", "mlp")),
    Fact("gated MLP", ("swiglu_mlp", "use_swiglu_ffn", "use_gated_mlp", "gated_mlp"), NO),
    Fact("kind of patch projection", ("embed_layer",), ("", "patchembed", "patch_embed")),
    Fact("hybrid stem", ("backbone_config", "hybrid_backbone"), NO),
    Fact("parallel blocks", ("num_parallel", "parallel_blocks", "use_parallel"), (*NO, 1)),
    Fact(
        "kind of model",
        ("model_type",),
        (
            "vit", "deit", "dinov2", "dinov2_with_registers", "vit_msn", "vit_mae", "timm_wrapper",
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
)  # fmt: skip
# Where a model's name stands. Under the first the name is timm's and must be known; under the
# others it may be anybody's, and what it does not tell is told elsewhere or assumed.
ARCHITECTURE = "architecture"
MODEL_NAMES = (ARCHITECTURE, "arch", "model", "model_name", "timm_model", "backbone", "variant")
# Such a name inside the name of a file.
IN_FILE_NAME = r"(?:^|[^a-z])((?:[a-z]*vit\d?|deit\d?|beit\w*?|eva\w*?)_\w*patch\d+\w*)"
# (pattern in timm's name of a model, what it tells); every row that matches counts.
ARCHITECTURES = (
    (r"_rope|dinov3|eva02|lingbot|sapiens|pe_(?:core|lang|spatial)", {"rotary positions": "rope"}),
    (r"s?relpos|^beit|data2vec", {"relative positions": "relative"}),
    (r"quickgelu|clip.*openai", {"activation": "quick_gelu"}),
    (r"siglip|_map_|_map$", {"activation": "gelu_tanh", "pooling": "map"}),
    (r"_gap(?:_|$)", {"pooling": "avg"}),
    (r"_clip_|_clip$|intern300m", {"norm before the blocks": True}),
    (r"_rpn(?:_|$)|swinv2", {"norm after each part": True}),
    (r"_xp(?:_|$)|_\d+x[2-9](?:_|$)", {"parallel blocks": 2}),
    (r"_r\d*_s\d+|resnet\d+|_mci_", {"hybrid stem": "a convolutional network"}),
    (r"^samvit|_det_", {"attention in windows": "windows"}),
    (r"giant.*(?:dinov2|tipsv2)", {"gated MLP": "SwiGLU"}),
    (r"radio", {"positions": "cropped"}),
    (r"miil|tipsv2", {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}),
)
# timm's names of models that are as ours in all that no row above tells.
PLAIN = (
    r"^(?:vit|deit3?)_[a-z]+\d*m?\d?(?:_distilled)?_patch\d+(?:_reg\d+)?(?:_plus)?(?:_36x1)?"
    r"(?:_dinov2|_tipsv2)?(?:_\d+)?(?:_(?:miil|in21k))*$|^flexivit_[a-z]+$|^test_vit$"
)
# Widths and depths whose heads are not 64 wide, beside those of the variants: (width, depth): heads
HEADS = {(1408, 40): 16, (1664, 48): 16, (1152, 27): 16, (64, 6): 2}

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
    (r"(?:^|\.)pooler\.dense\.", "a pooler, which no classifier reads"),
    (r"^text_model\.|^text_projection\.", "the text tower, which reads no photos"),
    (r"^visual_projection\.", "leads to the space shared with texts, which no classifier reads"),
    (r"^logit_(?:scale|bias)$", "compares photos with texts"),
    (r"(?:^|\.)lm_head\.", "predicts hidden patches in pretraining"),
    (r"\.relative_position_index$", "an index that the model makes itself"),
    (r"(?:^|\.)(?:position_ids|total_ops|total_params|n_averaged|num_updates)$", "a counter"),
    (r"(?:^|\.)(?:queue|queue_ptr|center)$|^dino_loss\.|^ibot_\w*loss\.", "a loss of pretraining"),
    (r"^(?:criterion|loss|loss_fn|loss_func)\.", "belongs to the loss"),
    (r"^(?:train|val|valid|test)?_?(?:acc\w*|metrics?|f1|auroc|confmat)\.", "belongs to a metric"),
    (r"^(?:optimizer|optim|scheduler|scaler)\.", "belongs to the optimiser"),
)
# (pattern, words): what a tensor that our model has no place for tells of the model.
RELATIVES = (
    (r"fc_norm\.", "averages its tokens before the head (fc_norm)"),
    (r"\.mlp\.w12\.|\.mlp\.fc1_g\.|\.mlp\.w[123]\.|gate_proj", "has gated MLPs (SwiGLU)"),
    (r"patch_embed\.backbone\.|embedder\.", "cuts its patches from a convolutional network"),
    (r"[qk]_?norm\.", "normalises queries and keys"),
    (r"norm_pre\.|pre_layrnorm", "has a norm before its blocks"),
    (r"relative_position|rel_pos", "has relative positions"),
    (r"(?:^|\.)rope|freqs", "has rotary positions"),
    (r"attn_pool|\.probe$", "pools by attention"),
    (r"lora_|\.base_layer\.", "has LoRA adapters, which must be merged into its layers first"),
    (r"weight_numerator", "has rational activations (KAT)"),
    (r"parametrizations|weight_[gv]$", "has weights in parts (weight norm)"),
    (r"(?:weight_scale|weight\.absmax|qweight|_packed_params)", "has quantised weights"),
)
# Modules under which scripts keep a classifier, one linear layer, where timm has `head`.
HEAD_NAMES = (
    r"(?:\w+\.)*?(?:\w*heads?|\w*classifier\w*|fc\d*|\w*linear\w*|lin|logits?|out(?:put)?"
    r"(?:_layer)?|cls|\d+)(?:\.(?:\d+|heads?|fc\d*|linear|layer|classifier|out|mlp|net))*"
)
# Parts of the name before the model where a file holds several; an earlier one is taken.
PREFERRED = ("ema", "teacher", "base_encoder", "encoder_q", "target_encoder")
