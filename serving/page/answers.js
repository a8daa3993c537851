// An answer in words and bars, and all answers as a table for spreadsheets.
import { element, named } from "./elements.js";
import { percent, say } from "./words.js";

// What to say of a photo in a word: a class, "unknown" or "unsure".
export function verdict(record) {
  if (record.unknown) return say("unknown");
  return record.unsure ? say("unsure") : record.predictions[0].class;
}

export const sureness = (record) => (record.unknown ? 0 : record.predictions[0].probability);

// The verdict and a bar for each class that is told, as elements.
export function answer(record) {
  const doubtful = record.unknown || record.unsure;
  const head = element("p", { className: doubtful ? "verdict doubtful" : "verdict" }, named(verdict(record)));
  if (record.unknown) head.append(element("small", { textContent: ` ${say("unknownwhy")}` }));
  return [head, element("ol", { className: "bars" }, ...record.predictions.map(bar))];
}

function bar({ class: name, probability }) {
  const line = element("span", { className: "fill", ariaHidden: "true" });
  line.style.width = `${100 * probability}%`;
  const share = element("span", { className: "share", textContent: percent(probability) });
  return element("li", {}, element("span", { className: "name" }, named(name)), share, line);
}

const cell = (value) => {
  const text = String(value);
  const safe = /^[=+\-@\t\r]/.test(text) ? `'${text}` : text; // else a spreadsheet runs it as a formula
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
};

// The columns of predict.py --csv, as text. rows: [{name, record | null, error}, ...]
export function csv(rows) {
  const most = Math.max(0, ...rows.map(({ record }) => record?.predictions.length ?? 0));
  const ranks = Array.from({ length: most }, (_, rank) => rank);
  const head = ["image", "answer", ...ranks.flatMap((rank) => [`class_${rank + 1}`, `probability_${rank + 1}`]), "error"];
  const lines = rows.map(({ name, record, error }) => {
    const told = ranks.flatMap((rank) => {
      const one = record?.predictions[rank];
      return one ? [cell(one.class), one.probability.toFixed(6)] : ["", ""];
    });
    const word = !record ? "" : record.unknown ? "unknown" : record.unsure ? "unsure" : record.predictions[0].class;
    return [cell(name), cell(word), ...told, cell(error)].join(",");
  });
  return [head.join(","), ...lines, ""].join("\r\n");
}
