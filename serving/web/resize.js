// From a picture to the model's input, number for number as imaging/preprocess.py and Pillow do it.
//
// A picture is {width, height, data}: rows of red, green, blue and a byte that counts for nothing.
// A browser scales pictures in ways of its own, so none of that is used.

const BITS = 22; // of the fraction in Pillow's fixed-point weights (Resample.c, PRECISION_BITS)

const FILTERS = {
  bilinear: { support: 1, at: (x) => Math.max(0, 1 - Math.abs(x)) },
  bicubic: {
    support: 2,
    at: (x) => {
      const a = -0.5;
      x = Math.abs(x);
      if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
      return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
    },
  },
  lanczos: { support: 3, at: (x) => (-3 <= x && x < 3 ? sinc(x) * sinc(x / 3) : 0) },
};

function sinc(x) {
  return x === 0 ? 1 : Math.sin(x * Math.PI) / (x * Math.PI);
}

/** Python's round(): halves go to the even neighbour. */
export function roundEven(x) {
  const low = Math.floor(x);
  if (x - low !== 0.5) return Math.round(x);
  return low % 2 === 0 ? low : low + 1;
}

/** A picture as the model's input: floats (3 x S x S), normalised. */
export function toInput(picture, preprocess) {
  return normalised(fit(picture, preprocess), preprocess);
}

/** A picture scaled to a square of img_size, as preprocess.Fit does. */
export function fit(picture, preprocess) {
  const { img_size: size, resize_mode: mode, interpolation, pillow } = preprocess;
  if (mode === "pad") return padded(picture, preprocess);
  return resample(picture, size, size, interpolation, pillow, cropBox(picture, preprocess));
}

/** The side that a photo is scaled to: Preprocess.short_side. */
export function shortSide({ img_size: size, resize_mode: mode, resize }) {
  return resize || roundEven(size * (mode === "crop" ? 256 / 224 : 1));
}

function cropBox({ width, height }, preprocess) {
  const { img_size: size, resize_mode: mode } = preprocess;
  const target = shortSide(preprocess);
  const [x, y] = [width, height].map((side) => {
    const scaled = mode === "squash" ? target : Math.floor((target * side) / Math.min(width, height));
    const start = roundEven((scaled - size) / 2);
    return [(start * side) / scaled, Math.min(((start + size) * side) / scaled, side)];
  });
  return [x[0], y[0], x[1], y[1]];
}

function padded(picture, preprocess) {
  const size = preprocess.img_size;
  const share = shortSide(preprocess) / Math.max(picture.width, picture.height);
  const [width, height] = [picture.width, picture.height].map((side) =>
    Math.max(1, roundEven(share * side)),
  );
  const small = resample(picture, width, height, preprocess.interpolation, preprocess.pillow);
  const colour = preprocess.mean.map((mean) => roundEven(255 * Math.min(Math.max(mean, 0), 1)));
  const square = blank(size, size);
  for (let at = 0; at < square.data.length; at += 4) square.data.set(colour, at);
  const [left, top] = [Math.floor((size - width) / 2), Math.floor((size - height) / 2)];
  const [from, to] = [Math.max(0, -left), Math.min(width, size - left)]; // resize may exceed img_size
  for (let y = Math.max(0, -top); y < Math.min(height, size - top); y++) {
    const row = small.data.subarray(4 * (y * width + from), 4 * (y * width + to));
    square.data.set(row, 4 * ((y + top) * size + left + from));
  }
  return square;
}

function normalised({ width, height, data }, { mean, std }) {
  const pixels = width * height;
  const input = new Float32Array(3 * pixels);
  for (let channel = 0; channel < 3; channel++) {
    const scale = Math.fround(1 / (255 * std[channel]));
    const shift = Math.fround(mean[channel] / std[channel]);
    const values = Float32Array.from({ length: 256 }, (_, v) => Math.fround(v * scale) - shift);
    for (let i = 0; i < pixels; i++) input[channel * pixels + i] = values[data[4 * i + channel]];
  }
  return input;
}

export function blank(width, height) {
  return { width, height, data: new Uint8ClampedArray(4 * width * height) };
}

/**
 * What Image.resize(size, filter, box) gives for an RGB picture.
 *
 * pillow: the major version. Since 13 columns are scaled before rows where that saves work, which
 * rounds otherwise (Resample.c, horizontal_first).
 */
export function resample(picture, width, height, filter, pillow, box = [0, 0, picture.width, picture.height]) {
  const [left, top, right, bottom] = box.map(Math.fround); // C floats there
  const across = left !== 0 || right !== picture.width || width !== picture.width;
  const down = top !== 0 || bottom !== picture.height || height !== picture.height;
  if (filter === "nearest") return nearest(picture, width, height, [left, top, right, bottom]);
  const saved = picture.height - height;
  const downFirst = pillow >= 13 && saved > 0 && saved > 2 * (picture.width - width);
  const rows = weights(picture.height, top, bottom, height, FILTERS[filter]);
  const columns = weights(picture.width, left, right, width, FILTERS[filter]);
  if (down && downFirst) picture = downColumns(picture, height, rows);
  if (across) picture = acrossRows(picture, width, columns, down && !downFirst ? rows : null);
  return down && !downFirst ? downColumns(picture, height, rows) : picture;
}

/** For each of `count` places of the result: where its pixels start, and their weights. */
function weights(length, start, end, count, { support, at }) {
  const scale = Math.fround(end - start) / count;
  const widened = Math.max(scale, 1);
  const reach = support * widened;
  return Array.from({ length: count }, (_, place) => {
    const centre = start + (place + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - reach + 0.5));
    const last = Math.min(length, Math.trunc(centre + reach + 0.5));
    const exact = [];
    for (let x = first; x < last; x++) exact.push(at((x - centre + 0.5) * (1 / widened)));
    const sum = exact.reduce((a, b) => a + b, 0) || 1;
    const fixed = exact.map((w) => Math.trunc((w / sum) * 2 ** BITS + (w < 0 ? -0.5 : 0.5)));
    return { first, weights: Int32Array.from(fixed) };
  });
}

/** Scales each row. Rows that nothing below wants stay empty. */
function acrossRows({ width, height, data }, count, columns, rows) {
  const result = blank(count, height);
  const top = rows ? rows[0].first : 0;
  const bottom = rows ? rows.at(-1).first + rows.at(-1).weights.length : height;
  for (let y = top; y < bottom; y++) {
    for (let x = 0; x < count; x++) {
      const { first, weights } = columns[x];
      blend(data, 4 * (y * width + first), 4, weights, result.data, 4 * (y * count + x));
    }
  }
  return result;
}

function downColumns({ width, data }, count, rows) {
  const result = blank(width, count);
  for (let y = 0; y < count; y++) {
    const { first, weights } = rows[y];
    for (let x = 0; x < width; x++) {
      blend(data, 4 * (first * width + x), 4 * width, weights, result.data, 4 * (y * width + x));
    }
  }
  return result;
}

/** One pixel: a weighted sum of pixels that lie `step` bytes apart, rounded and clipped. */
function blend(data, from, step, weights, target, to) {
  let red = 1 << (BITS - 1);
  let green = red;
  let blue = red;
  for (let k = 0; k < weights.length; k++, from += step) {
    const weight = weights[k];
    red += data[from] * weight;
    green += data[from + 1] * weight;
    blue += data[from + 2] * weight;
  }
  target[to] = red >> BITS; // the array clips
  target[to + 1] = green >> BITS;
  target[to + 2] = blue >> BITS;
}

/** Pillow takes another way for it (Geometry.c, ImagingScaleAffine), adding up steps. */
function nearest(picture, width, height, [left, top, right, bottom]) {
  const result = blank(width, height);
  const places = (count, start, end) => {
    const step = Math.fround(end - start) / count;
    const found = [];
    for (let i = 0, at = start + step * 0.5; i < count; i++, at += step) found.push(Math.trunc(at));
    return found;
  };
  const columns = places(width, left, right);
  places(height, top, bottom).forEach((row, y) => {
    columns.forEach((column, x) => {
      const from = 4 * (row * picture.width + column);
      result.data.set(picture.data.subarray(from, from + 4), 4 * (y * width + x));
    });
  });
  return result;
}

/** How many pixels become one when libjpeg decodes at a part of the size: 8, 4, 2 or 1. */
export function draftScale(width, height, least) {
  const most = Math.min(Math.floor(width / least), Math.floor(height / least));
  return [8, 4, 2].find((scale) => most >= scale) || 1;
}

/**
 * Adds a piece of a picture to its reduced copy: each block of `scale` x `scale` pixels as its mean.
 *
 * That is what libjpeg's reduced transforms compute (jidctred.c). At the right and lower end a block
 * goes on with the last pixel, as encoders fill it. The piece lies at `left`, `top`, multiples of
 * `scale`.
 */
export function addReduced(target, piece, scale, left, top) {
  const { width, height, data } = piece;
  const half = (scale * scale) / 2;
  for (let y = 0; y < height; y += scale) {
    for (let x = 0; x < width; x += scale) {
      let red = half;
      let green = half;
      let blue = half;
      for (let dy = 0; dy < scale; dy++) {
        const row = Math.min(y + dy, height - 1) * width;
        for (let dx = 0; dx < scale; dx++) {
          const from = 4 * (row + Math.min(x + dx, width - 1));
          red += data[from];
          green += data[from + 1];
          blue += data[from + 2];
        }
      }
      const to = 4 * (((top + y) / scale) * target.width + (left + x) / scale);
      target.data[to] = Math.floor(red / (scale * scale));
      target.data[to + 1] = Math.floor(green / (scale * scale));
      target.data[to + 2] = Math.floor(blue / (scale * scale));
    }
  }
}
