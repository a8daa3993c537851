// What the page says, in its languages. Names of classes and files are nobody's to translate.
export const WORDS = {
  en: {
    title: "What does the model see?",
    other: "正體中文",
    model: "model",
    drop: "Drop photos here",
    paste: "or paste a picture from the clipboard",
    choose: "Choose photos",
    camera: "Camera",
    phone: "Take a photo",
    insecure:
      "Browsers open the camera for this page at localhost or over https only (serve.py --cert FILE --key FILE). " +
      "On a phone, “Take a photo” opens its own camera.",
    nocamera: "The camera cannot be opened: {0}",
    live: "Camera: an answer a second",
    keep: "Keep this picture",
    stop: "Stop",
    answers: "Answers",
    sort: "sorted by",
    newest: "newest first",
    surest: "surest first",
    least: "least sure first",
    csv: "Save as CSV",
    clear: "Clear",
    server: "Photos go to the computer that serves this page, are kept in its memory while it answers, and nowhere else.",
    here: "Photos stay on this device: the model runs in this page.",
    right: "right on {0} of {1} that it was not trained on",
    interval: "{0} to {1}",
    aside: " ({0})",
    comma: ", ",
    valphotos: "the validation photos",
    testphotos: "the test photos",
    classes: "It knows {0} classes: {1}",
    each: "Each class has a probability of its own: several may be true, or none.",
    wait: "looking …",
    unknown: "unknown",
    unknownwhy: "unlike all that it was trained on",
    unsure: "unsure",
    why: "Why?",
    hide: "Hide",
    remove: "Remove",
    removed: "Removed {0}",
    picture: "The photo {0}",
    pasted: "pasted picture",
    frame: "camera",
    looked: "Where it looked for {0}",
    half: "Bright: counted most. Half of what counted lies in {0} of {1} patches.",
    nothing: "No patch of the photo speaks for {0}.",
    covered: "Measured: the answer goes from {0} to {1} when the brightest fifth is covered, to {2} with a random fifth.",
    method: "Method: {0}.",
    slider: "strength of the overlay",
    splines: "The splines that mattered",
    nosplines: "The splines",
    splineshow:
      "Line: what the spline learned. Bars: the values that it met in this photo. Dot: where it acted most.",
    unlearned: "They are as they were before training: nothing has been learned yet that they could explain.",
    for: "for",
    against: "against",
    block: "block {0}, {1}",
    fc1: "layer 1",
    fc2: "layer 2",
    feature: "feature {0}",
    features: "features {0} to {1}",
    part: "part {0}",
    near: "The training photos most like it",
    alike: "{0} alike",
    nowhy: "This model's file does not let itself be explained.",
    link: "That is a link: save the picture first, then drop the file.",
    none: "That holds no picture.",
    photo: "This is no photo that can be read",
    large: "This file is too large",
    busy: "Many are asking: try again in a moment",
    gone: "No answer: does the server still run?",
    refused: "The server refuses this page",
    wrong: "Something went wrong",
    full: ". ",
    said: "{0}: {1}, {2}",
    photos: "{0} photos",
    onephoto: "1 photo",
  },
  "zh-Hant": {
    title: "模型看見了什麼？",
    other: "English",
    model: "模型",
    drop: "把照片拖放到這裡",
    paste: "或從剪貼簿貼上圖片",
    choose: "選擇照片",
    camera: "相機",
    phone: "拍一張照片",
    insecure:
      "瀏覽器只在 localhost 或 https 下讓這個頁面使用相機（serve.py --cert 檔案 --key 檔案）。" +
      "在手機上，「拍一張照片」會開啟手機自己的相機。",
    nocamera: "無法開啟相機：{0}",
    live: "相機：每秒一個答案",
    keep: "保留這張畫面",
    stop: "停止",
    answers: "答案",
    sort: "排序",
    newest: "最新的在前",
    surest: "最確定的在前",
    least: "最不確定的在前",
    csv: "存成 CSV",
    clear: "清除",
    server: "照片只送到提供這個頁面的電腦，回答時暫存在它的記憶體中，不會到其他任何地方。",
    here: "照片不會離開這個裝置：模型就在這個頁面中執行。",
    right: "在沒有用來訓練的{1}中答對 {0}",
    interval: "{0} 至 {1}",
    aside: "（{0}）",
    comma: "，",
    valphotos: "驗證照片",
    testphotos: "測試照片",
    classes: "它認得 {0} 個類別：{1}",
    each: "每個類別各有自己的機率：可能有好幾個成立，也可能都不成立。",
    wait: "正在看……",
    unknown: "未知",
    unknownwhy: "不像任何訓練過的照片",
    unsure: "不確定",
    why: "為什麼？",
    hide: "收起",
    remove: "移除",
    removed: "已移除 {0}",
    picture: "照片 {0}",
    pasted: "貼上的圖片",
    frame: "相機畫面",
    looked: "它為「{0}」看了哪裡",
    half: "越亮越重要。一半的依據落在 {1} 個圖塊中的 {0} 個。",
    nothing: "照片中沒有圖塊支持「{0}」。",
    covered: "實測：遮住最亮的五分之一，答案由 {0} 變為 {1}；隨機遮住五分之一，則變為 {2}。",
    method: "方法：{0}。",
    slider: "疊圖的濃淡",
    splines: "起作用的樣條",
    nosplines: "樣條",
    splineshow: "線：樣條學到的曲線。長條：它在這張照片中遇到的數值。圓點：作用最大之處。",
    unlearned: "它們與訓練之前一樣：還沒有學到任何可以解釋的東西。",
    for: "支持",
    against: "反對",
    block: "第 {0} 塊，{1}",
    fc1: "第 1 層",
    fc2: "第 2 層",
    feature: "特徵 {0}",
    features: "特徵 {0} 至 {1}",
    part: "分量 {0}",
    near: "最相似的訓練照片",
    alike: "相似度 {0}",
    nowhy: "這個模型的檔案無法提供解釋。",
    link: "這是一個連結：請先把圖片存成檔案，再拖放進來。",
    none: "這裡面沒有圖片。",
    photo: "這不是可以讀取的照片",
    large: "檔案太大",
    busy: "現在很多人在問：請稍後再試",
    gone: "沒有回應：伺服器還在執行嗎？",
    refused: "伺服器拒絕這個頁面",
    wrong: "發生錯誤",
    full: "。",
    said: "{0}：{1}，{2}",
    photos: "{0} 張照片",
    onephoto: "1 張照片",
  },
};

const KEPT = "language"; // in the browser's storage, where it allows that

function first() {
  try {
    const kept = localStorage.getItem(KEPT);
    if (kept in WORDS) return kept;
  } catch {
    // storage may be shut: the browser's languages decide
  }
  const wanted = (navigator.languages ?? [navigator.language]).find((tag) => /^(zh|en)/i.test(tag));
  return /^zh/i.test(wanted ?? "") ? "zh-Hant" : "en";
}

let language = first();

// The words of a key, with {0}, {1} replaced.
export function say(key, ...values) {
  return values.reduce((text, value, place) => text.replace(`{${place}}`, () => value), WORDS[language][key]);
}

// Every element with a data-word says it in the language chosen.
export function translate(root = document) {
  document.documentElement.lang = language;
  for (const element of root.querySelectorAll("[data-word]")) {
    element.textContent = say(element.dataset.word);
  }
}

export function switchLanguage() {
  language = language === "en" ? "zh-Hant" : "en";
  try {
    localStorage.setItem(KEPT, language);
  } catch {
    // then it holds for this visit
  }
}

export const otherLanguage = () => ({ tag: language === "en" ? "zh-Hant" : "en", name: say("other") });

// Whether reasons that a server gives, which are English, can be read beside the page's own words.
export const readsReasons = () => language === "en";

export const percent = (share, digits = 1) =>
  new Intl.NumberFormat(language, { style: "percent", minimumFractionDigits: digits, maximumFractionDigits: digits }).format(share);
