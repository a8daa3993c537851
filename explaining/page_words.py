"""The words of explain.html, in the language of the class names, with those of the figures."""

from collections.abc import Sequence

from explaining.words import WORDS, Say, language_of

PAGE_WORDS = {
    "en": {
        "most_used": "Block {0}: the most used splines of each layer. Solid: learned; dashed: "
        "before training; grey: the values met.",
        "moved_bars": "logits move by, without a block's splines",
        "share_bars": "splines' share of the output, %",
        "outside_bars": "activations outside the grid, %",
        "block_layer": "block.layer",
        "title": "What the splines of {0} do",
        "about": "{0} is a Vision Transformer with {1} splines in {2} of its {3} blocks: curves in "
        "its layers that training bends.",
        "of_run": "Measured on {0} of the {1} photos that its run kept for validation.",
        "of_folds": "Measured on {0} of the {1} photos of its run, which judged them in folds: "
        "this model itself was trained on all of them.",
        "of_data": "Measured on {0} photos of {1}.",
        "trained": "The model was trained on {0} of these photos.",
        "then": "Train it, and make this page again.",
        "little": "These splines hardly change an answer: without all of them {0} of {1} photos "
        "are answered otherwise, and they make at most {2} of a layer's output. What is shown "
        "below is there, but it decides little. Splines that train longer, at a higher "
        "--kan-lr-scale, or while all else stays frozen may carry more.",
        "no_spline": "photos answered otherwise without any spline",
        "right": "photos answered right: with the splines, and without",
        "shares": "of a layer's output, made by its splines",
        "splines_in": "splines that were looked at",
        "of": "{0} of {1}",
        "from_to": "{0} → {1}",
        "up_to": "up to {0}",
        "read": "How to read this page",
        "read_feature": "A feature is a number that a layer reads at each patch of a photo (the "
        "frame marks it), and once in the class token, which stands for the whole photo (the frame "
        "is then around all of it). What a feature stands for nobody told the model: look at the "
        "photos at both ends.",
        "read_curve": "The curve shows what the spline adds (upwards) where the feature has a "
        "value (from left to right). Dashed: before training it added nothing. Grey: how often "
        "each value was met.",
        "read_ends": "Beside it stand the photos with the lowest and the highest values, and how "
        "much the spline adds there to the score (logit) of each class, less what it adds to all "
        "on the mean: on the quarter of the photos that lie furthest out, where the value is among "
        "the lowest or highest quarter of all. Below the curve: on all photos, at all places. By "
        "+0.1 a class gains about a tenth of its odds.",
        "read_layers": "Of each block, qkv reads what attention compares, proj passes on what "
        "attention found, and layers 1 and 2 work on each place by itself.",
        "read_order": "A spline stands the higher the more it moves the answers that are given. "
        "What one adds is found to first order (the slope of the score, times what it adds); what "
        "a block's splines do is measured without them.",
        "which": "Which blocks' splines matter",
        "which_note": "measured: one block's splines are taken away, all else stays",
        "moves": "a score moves by",
        "anew": "photos answered otherwise",
        "share_of": "share of the output: {0}",
        "block_n": "Block {0}",
        "without": "Without its {0} splines a score moves by {1} on the mean, and {2} of {3} "
        "photos are answered otherwise.",
        "alone": "Without the {0} below alone: {1}, and {2} photos.",
        "no_effect": "None of its splines moves an answer.",
        "whole": "in the class token, for the whole photo",
        "places": "at places in the photo",
        "low_end": "lowest values",
        "high_end": "highest values",
        "all_photos": "on all photos",
        "high": "Where this feature is high{0}, the spline {1}; {2}.",
        "low": "Where this feature is low{0}, the spline {1}; {2}.",
        "highs": "Where one of these features is high{0}, the spline {1}; {2}.",
        "lows": "Where one of these features is low{0}, the spline {1}; {2}.",
        "as": ", as in photos of {0}",
        "named": "{0}",
        "and": " and ",
        "it": "it",
        "result": "feature {0} of the result",
        "result_part": "part {0} of the result",
        "raises": "raises {0} (by\u00a0{1})",
        "lowers": "lowers {0} (by\u00a0{1})",
        "hardly": "hardly changes {0}",
        "for_against": "that speaks for {0} and against {1}",
        "neither": "that moves no class noticeably",
        "only_for": "that speaks for {0}",
        "only_against": "that speaks against {0}",
        "valued": "{0} ({1})",
        "curve_alt": "the spline adds {0} at the value {1} and {2} at {3}",
        "spot_alt": "{0}, value {1}",
        "unlabelled": "answered {0}",
    },
    "zh-Hant": {
        "most_used": "第 {0} 塊：各層中最常用的樣條。實線：學到的曲線；虛線：訓練之前；"
        "灰色：遇到的數值。",
        "moved_bars": "拿掉一塊的樣條後 logit 的變動",
        "share_bars": "樣條占輸出的比例（%）",
        "outside_bars": "落在網格外的數值（%）",
        "block_layer": "塊.層",
        "title": "{0} 的樣條做了什麼",
        "about": "{0} 是 Vision Transformer，{3} 塊中有 {2} 塊含樣條，共 {1} 條：樣條是層裡由訓練"
        "彎出來的曲線。",
        "of_run": "以這次訓練留作驗證的 {1} 張照片中的 {0} 張實測。",
        "of_folds": "以這次訓練的 {1} 張照片中的 {0} 張實測；訓練以交叉驗證評估它們，"
        "而這個模型本身用了全部照片訓練。",
        "of_data": "以 {1} 的 {0} 張照片實測。",
        "trained": "其中 {0} 張是模型訓練時用過的。",
        "then": "訓練之後，再產生這一頁。",
        "little": "這些樣條幾乎不改變答案：拿掉全部樣條，{1} 張照片中只有 {0} 張的答案不同，"
        "它們最多只占一層輸出的 {2}。下面所示確實存在，但影響很小。訓練久一點、"
        "--kan-lr-scale 高一點，或凍結其餘部分，樣條的作用可能更大。",
        "no_spline": "拿掉全部樣條後答案不同的照片",
        "right": "答對的照片：有樣條 → 沒有樣條",
        "shares": "一層的輸出中由樣條產生的",
        "splines_in": "檢視的樣條",
        "of": "{1} 張中 {0} 張",
        "from_to": "{0} → {1}",
        "up_to": "最多 {0}",
        "read": "這一頁怎麼看",
        "read_feature": "特徵是一層在照片的每個圖塊讀到的一個數值（方框標出圖塊），"
        "在代表整張照片的類別標記中也有一個（這時方框圍住整張照片）。特徵代表什麼，沒有人告訴過模型："
        "請看兩端的照片。",
        "read_curve": "曲線表示特徵為某個數值時（由左到右）樣條加上多少（向上）。"
        "虛線：訓練之前什麼也不加。灰色：各個數值出現得多頻繁。",
        "read_ends": "兩旁是數值最低與最高的照片，以及樣條在那裡給每個類別的分數（logit）加上多少，"
        "再減去它給所有類別的平均：取最靠外的四分之一照片，以及數值在最低或最高四分之一的位置。"
        "曲線下方：所有照片、所有位置。+0.1 約使一個類別的勝算增加十分之一。",
        "read_layers": "每塊之中，qkv 讀取注意力所比較的內容，proj 傳遞注意力找到的內容，"
        "第 1 層與第 2 層則各自處理每個位置。",
        "read_order": "越能改變答案的樣條排得越前面。一條樣條加上多少以一階近似求得"
        "（分數的斜率乘以它加上的值）；一塊的樣條有何作用，則是拿掉它們實測。",
        "which": "哪些塊的樣條重要",
        "which_note": "實測：拿掉一塊的樣條，其餘不變",
        "moves": "分數的變動",
        "anew": "答案不同的照片",
        "share_of": "占輸出的比例：{0}",
        "block_n": "第 {0} 塊",
        "without": "拿掉它的 {0} 條樣條，分數平均變動 {1}，{3} 張照片中 {2} 張的答案不同。",
        "alone": "只拿掉下列 {0} 條：{1}，{2} 張。",
        "no_effect": "它的樣條都不改變答案。",
        "whole": "在類別標記中，針對整張照片",
        "places": "在照片中的各個位置",
        "low_end": "最低的數值",
        "high_end": "最高的數值",
        "all_photos": "所有照片",
        "high": "這個特徵高的地方{0}，樣條{1}；{2}。",
        "low": "這個特徵低的地方{0}，樣條{1}；{2}。",
        "highs": "這些特徵之一高的地方{0}，樣條{1}；{2}。",
        "lows": "這些特徵之一低的地方{0}，樣條{1}；{2}。",
        "as": "（例如{0}的照片）",
        "named": "「{0}」",
        "and": "與",
        "it": "它",
        "result": "結果的特徵 {0}",
        "result_part": "結果的分量 {0}",
        "raises": "使{0}升高（{1}）",
        "lowers": "使{0}降低（{1}）",
        "hardly": "幾乎不改變{0}",
        "for_against": "這支持{0}，反對{1}",
        "neither": "這對任何類別都沒有明顯的作用",
        "only_for": "這支持{0}",
        "only_against": "這反對{0}",
        "valued": "「{0}」（{1}）",
        "curve_alt": "數值 {1} 時樣條加上 {0}，數值 {3} 時加上 {2}",
        "spot_alt": "{0}，數值 {1}",
        "unlabelled": "答案：{0}",
    },
}


def all_words(language: str) -> list[str]:
    """Returns every text of the page, for a font that has its letters."""
    return [*(WORDS[language] | PAGE_WORDS[language]).values()]


def page_words(names: Sequence[str]) -> tuple[str, Say]:
    """Returns the language of the page, and what says a key of it or of the figures' words."""
    language = language_of(names)
    words = WORDS[language] | PAGE_WORDS[language]
    return language, lambda key, *values: words[key].format(*values)
