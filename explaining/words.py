"""The words of the figures, in the language of the class names: English, or Traditional Chinese.

say = words_for(classes)
say("looked", "daisy")          # "where it looked for “daisy”"

The terms are those of the page (serving/page/words.js).
"""

from collections.abc import Callable, Sequence

from explaining.curves import Place

WORDS = {
    "en": {
        "photo": "the photo",
        "looked": "where it looked for “{0}”",
        "half": "bright: counted most. Half of what counted lies\nin {0} of {1} patches",
        "nothing": "no patch of the photo speaks for “{0}”",
        "covered": "measured: the answer goes from {0} to {1} when the\n"
        "brightest fifth is covered, to {2} with a random fifth",
        "answered": "what it answered",
        "unknown": "unknown",
        "unsure": "unsure",
        "blocks": "all splines of a block, for or against “{0}”",
        "block": "block",
        "splines": "Splines that moved the answer most. Line: what the spline learned; dashed: "
        "before training.\nGrey: the values it met in all photos of this call. "
        "Dot: where it acted most in this photo.",
        "removed": "measured: the logit of “{0}” goes from {3} to {4} without the {1} of {2} "
        "splines that\nspeak most for it, which are named in the file, to {5} without as many at "
        "random",
        "unlearned": "The splines of this model are as they were before training: nothing has been "
        "learned yet that they could explain.",
        "for": "for “{0}”",
        "against": "against “{0}”",
        "token": "in the class token",
        "most": "most at {0} in the photo",
        "comma": ", ",
        "place": "block {0}, {1}",
        "fc1": "layer 1",
        "fc2": "layer 2",
        "feature": "feature {0}",
        "features": "features {0} to {1}",
        "part": "part {0}",
        "near": "the training photos most like it, to the model",
        "own": "; this photo is one of them",
        "same": ", the same to the model",
        "gone": "(not there now)",
    },
    "zh-Hant": {
        "photo": "這張照片",
        "looked": "它為「{0}」看了哪裡",
        "half": "越亮越重要。一半的依據落在\n{1} 個圖塊中的 {0} 個",
        "nothing": "照片中沒有圖塊支持「{0}」",
        "covered": "實測：遮住最亮的五分之一，答案由 {0} 變為 {1}；\n隨機遮住五分之一，則變為 {2}",
        "answered": "它的答案",
        "unknown": "未知",
        "unsure": "不確定",
        "blocks": "一塊中所有樣條，支持或反對「{0}」",
        "block": "塊",
        "splines": "起作用的樣條。線：樣條學到的曲線；虛線：訓練之前。\n"
        "灰色：它在這次所有照片中遇到的數值。圓點：它在這張照片中作用最大之處。",
        "removed": "實測：{2} 條樣條中，拿掉最支持「{0}」的 {1} 條（列在檔案中），\n"
        "它的 logit 由 {3} 變為 {4}；隨機拿掉同樣多，則變為 {5}",
        "unlearned": "這個模型的樣條與訓練之前一樣：還沒有學到任何可以解釋的東西。",
        "for": "支持「{0}」",
        "against": "反對「{0}」",
        "token": "在類別標記中",
        "most": "作用最大處在照片的 {0}",
        "comma": "，",
        "place": "第 {0} 塊，{1}",
        "fc1": "第 1 層",
        "fc2": "第 2 層",
        "feature": "特徵 {0}",
        "features": "特徵 {0} 至 {1}",
        "part": "分量 {0}",
        "near": "對模型而言最相似的訓練照片",
        "own": "；這張照片是其中之一",
        "same": "，對模型而言相同",
        "gone": "（現在不在那裡）",
    },
}
Say = Callable[..., str]


def language_of(names: Sequence[str]) -> str:
    """Returns "zh-Hant" where most of the names are Chinese, else "en"."""
    chinese = [name for name in names if _has(name, 0x4E00, 0x9FFF)]
    other = any(_has(name, 0x3040, 0x30FF) or _has(name, 0xAC00, 0xD7A3) for name in names)
    return "zh-Hant" if len(chinese) * 2 > len(names) and not other else "en"


def _has(text: str, first: int, last: int) -> bool:
    return any(first <= ord(character) <= last for character in text)


def words_for(names: Sequence[str]) -> Say:
    """Returns what says a key of WORDS, with its values put in, as the class names are written."""
    words = WORDS[language_of(names)]
    return lambda key, *values: words[key].format(*values)


def place_in_words(place: Place, say: Say) -> str:
    """Where a curve sits, for a reader."""
    layer = say(place.layer) if place.layer in WORDS["en"] else place.layer
    one = place.first == place.last
    ends = (place.first,) if one else (place.first, place.last)
    parts = [say("place", place.block + 1, layer), say("feature" if one else "features", *ends)]
    if place.part is not None:
        parts.append(say("part", place.part))
    to = "" if place.to is None else f" → {place.to}"
    return say("comma").join(parts) + to
