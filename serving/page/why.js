// Why a model answered so: where it looked, the splines that mattered, the training photos most alike.
import { drawn, element, named } from "./elements.js";
import { percent, say } from "./words.js";

// Colours of matplotlib's inferno at even steps: each brighter than the one before, to any eye.
const INFERNO = ["000004", "210c4a", "57106e", "8a226a", "bc3754", "e45a31", "f98e09", "f9cb35", "fcffa4"].map((hex) =>
  [0, 2, 4].map((place) => parseInt(hex.slice(place, place + 2), 16)),
);
const STRENGTH = 65; // of the overlay at first, in percent

// Elements for what the engine told (serving/explanations.py). picture: an <img> of the photo.
export function explained(why, picture) {
  const parts = [looked(why, picture)];
  if (why.splines?.length) parts.push(splines(why));
  else if (why.unlearned) parts.push(unlearned());
  if (why.near?.length) parts.push(nearest(why.near));
  return parts;
}

function looked(why, picture) {
  const map = element("div", { className: "map" }, picture);
  const heat = element("div", { className: "heat", ariaHidden: "true" }, heatMap(why.heat), ...marks(why));
  // As large as it fits, in its own proportions: the overlay lies on it in shares of its sides.
  picture.addEventListener("load", () => map.style.setProperty("--shape", picture.naturalWidth / picture.naturalHeight));
  const [left, top, right, bottom] = why.box;
  Object.assign(heat.style, {
    left: `${100 * left}%`, top: `${100 * top}%`, width: `${100 * (right - left)}%`, height: `${100 * (bottom - top)}%`,
  });
  map.append(heat);
  const slider = element("input", { type: "range", min: 0, max: 100, value: STRENGTH });
  slider.setAttribute("aria-label", say("slider"));
  const strength = () => {
    heat.style.opacity = slider.value / 100;
    picture.style.filter = `grayscale(${Math.min(1, slider.value / 50)})`;
  };
  slider.addEventListener("input", strength);
  strength();
  const patches = why.heat.length * why.heat[0].length;
  return element(
    "section", { className: "looked" },
    element("h3", { textContent: say("looked", why.class) }),
    map,
    slider,
    element("p", { className: "note", textContent: why.half ? say("half", why.half, patches) : say("nothing", why.class) }),
    ...worth(why),
  );
}

// What covering the marked patches of this very photo did to the answer, and who marked them.
function worth({ covered, method }) {
  const told = covered ? [say("covered", ...[covered.whole, covered.marked, covered.random].map((share) => percent(share)))] : [];
  if (method) told.push(say("method", method));
  return told.map((textContent) => element("p", { className: "note", textContent }));
}

function unlearned() {
  return element(
    "section", { className: "splines" },
    element("h3", { textContent: say("nosplines") }),
    element("p", { className: "note", textContent: say("unlearned") }),
  );
}

// A patch or two that stand out leave the others visible: from this quantile on all are as bright.
const BRIGHTEST = 0.97;

function heatMap(rows) {
  const canvas = element("canvas", { width: rows[0].length, height: rows.length });
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(canvas.width, canvas.height);
  const values = rows.flat();
  const most = [...values].sort((a, b) => a - b)[Math.floor(BRIGHTEST * (values.length - 1))] || 1;
  values.forEach((heat, place) => {
    const value = Math.min(heat / most, 1);
    const at = value * (INFERNO.length - 1);
    const low = Math.min(Math.floor(at), INFERNO.length - 2);
    const colour = INFERNO[low].map((from, part) => from + (at - low) * (INFERNO[low + 1][part] - from));
    pixels.data.set([...colour, 255 * (0.35 + 0.65 * value)], 4 * place);
  });
  context.putImageData(pixels, 0, 0);
  return canvas;
}

// The number of each spline on the patch where it acted most.
function marks(why) {
  const at = new Map();
  (why.splines ?? []).forEach(({ patch }, place) => {
    if (patch !== null) at.set(patch, [...(at.get(patch) ?? []), place + 1]);
  });
  const side = why.heat[0].length;
  return [...at].map(([patch, numbers]) => {
    const mark = element("span", { className: "mark", textContent: numbers.join(",") });
    mark.style.left = `${(100 * ((patch % side) + 0.5)) / side}%`;
    mark.style.top = `${(100 * (Math.floor(patch / side) + 0.5)) / why.heat.length}%`;
    return mark;
  });
}

function splines(why) {
  const charts = why.splines.map((spline, place) => {
    const sign = spline.contribution > 0 ? "for" : "against";
    const size = `${spline.contribution > 0 ? "+" : "−"}${Math.abs(spline.contribution).toPrecision(2)}`;
    const title = element(
      "figcaption", {},
      element("b", { textContent: `${place + 1}  ` }),
      element("span", { className: sign, textContent: `${size} ${say(sign)}` }),
      element("small", { textContent: ` ${where(spline)}` }),
    );
    return element("figure", { className: sign }, chart(spline), title);
  });
  return element(
    "section", { className: "splines" },
    element("h3", { textContent: say("splines") }),
    element("p", { className: "note", textContent: say("splineshow") }),
    element("div", { className: "charts" }, ...charts),
  );
}

// Where in the model a spline sits, in words.
function where({ block, layer, first, last, part, to }) {
  const place = say("block", block, ["fc1", "fc2"].includes(layer) ? say(layer) : layer);
  const feature = first === last ? say("feature", first) : say("features", first, last);
  const end = part !== null ? `, ${say("part", part)}` : to !== null ? ` → ${to}` : "";
  return `${place}, ${feature}${end}`;
}

const [WIDE, HIGH, EDGE] = [200, 110, 6];

function chart({ x, y, spread, here }) {
  const [low, high] = [Math.min(...y, here[1], 0), Math.max(...y, here[1], 0)];
  const across = (value) => EDGE + ((value - x[0]) / (x.at(-1) - x[0] || 1)) * (WIDE - 2 * EDGE);
  const up = (value) => HIGH - EDGE - ((value - low) / (high - low || 1)) * (HIGH - 2 * EDGE);
  const most = Math.max(...spread, 1);
  const step = (WIDE - 2 * EDGE) / spread.length;
  const bars = spread.map((count, place) => {
    const height = (count / most) * (HIGH - 2 * EDGE);
    return drawn("rect", { class: "met", x: EDGE + place * step, y: HIGH - EDGE - height, width: step, height });
  });
  const points = x.map((value, place) => `${across(value).toFixed(1)},${up(y[place]).toFixed(1)}`).join(" ");
  return drawn(
    "svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img", "aria-hidden": "true" },
    ...bars,
    drawn("line", { class: "zero", x1: EDGE, x2: WIDE - EDGE, y1: up(0), y2: up(0) }),
    drawn("polyline", { class: "learned", points }),
    drawn("circle", { class: "here", cx: across(here[0]), cy: up(here[1]), r: 5 }),
  );
}

function nearest(near) {
  const photos = near.map(({ label, similarity, photo }) =>
    element(
      "figure", {},
      photo && element("img", { src: photo, alt: "" }),
      element("figcaption", {}, named(label), element("small", { textContent: ` ${say("alike", percent(similarity))}` })),
    ),
  );
  return element(
    "section", { className: "near" },
    element("h3", { textContent: say("near") }),
    element("div", { className: "charts" }, ...photos),
  );
}
