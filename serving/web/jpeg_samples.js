// From the coefficients of a JPEG to samples and colours, in libjpeg's integers: jidctint.c and
// jidctred.c (transforms), jdsample.c (upsampling), jdcolor.c (colours).

import { blank } from "./resize.js";

const BITS = 13; // of the fraction of the constants (CONST_BITS)
const EXTRA = 2; // bits kept between the passes (PASS1_BITS)
const work = new Int32Array(64);

/** Samples of one colour of a frame: its coefficients, its blocks, then its rows of bytes. */
export class Plane {
  constructor({ frame, scale }, id, h, v, quant) {
    const [mostH, mostV] = frame.most;
    Object.assign(this, { id, h, v, quant, table: null, coefficients: null });
    const least = 8 / scale;
    let size = least; // of a block; of less sampled colours as large as spares upsampling
    while (size < 8 && (mostH * least) % (h * size * 2) === 0 && (mostV * least) % (v * size * 2) === 0) size *= 2;
    this.size = size;
    this.across = frame.across * h; // blocks, with those that fill the last unit
    this.down = frame.down * v;
    this.ownAcross = Math.ceil((frame.width * h) / (8 * mostH)); // blocks of a scan of its own
    this.ownDown = Math.ceil((frame.height * v) / (8 * mostV));
    this.width = Math.ceil((frame.width * h * size) / (8 * mostH)); // samples that count
    this.height = Math.ceil((frame.height * v * size) / (8 * mostV));
    this.wider = (mostH * least) / (h * size); // what upsampling makes of a sample
    this.higher = (mostV * least) / (v * size);
    this.stride = this.across * size;
    this.fancy = least > 1;
  }

  /** Before a scan. whole: it holds all of this plane, so that blocks need not be kept. */
  begin(whole) {
    this.samples ??= new Uint8ClampedArray(this.stride * this.down * this.size);
    this.scratch = new Int16Array(64);
    if (!whole) this.coefficients ??= new Int16Array(64 * this.across * this.down);
  }

  decode(block, code, row, column) {
    if (this.coefficients) {
      block(code, this, this.coefficients, 64 * (row * this.across + column));
      return;
    }
    this.scratch.fill(0);
    block(code, this, this.scratch, 0);
    this.transform(this.scratch, 0, row, column);
  }

  transform(coefficients, from, row, column) {
    const to = row * this.size * this.stride + column * this.size;
    TRANSFORMS[this.size](coefficients, from, this.table, this.samples, to, this.stride);
  }

  /** Samples of the whole plane, from kept coefficients where there are some. */
  finish() {
    if (!this.coefficients) return;
    for (let row = 0; row < this.down; row++) {
      for (let column = 0; column < this.across; column++) {
        this.transform(this.coefficients, 64 * (row * this.across + column), row, column);
      }
    }
    this.coefficients = null;
  }

  /** Row `y` of the picture, upsampled into `out`. */
  row(y, out) {
    const { samples, stride, height, wider, higher } = this;
    const own = Math.floor(y / higher);
    const start = own * stride;
    if (wider === 1 && higher === 1) out.set(samples.subarray(start, start + this.width));
    else if (wider === 2 && higher === 1 && this.fancy && this.width > 2) wide(samples, start, this.width, out);
    else if (higher === 2 && this.fancy && (wider === 1 || (wider === 2 && this.width > 2))) {
      const below = y % 2 === 1;
      const other = Math.min(Math.max(own + (below ? 1 : -1), 0), height - 1) * stride;
      if (wider === 1) high(samples, start, other, this.width, out, below ? 2 : 1);
      else both(samples, start, other, this.width, out);
    } else for (let x = 0; x < out.length; x++) out[x] = samples[start + Math.floor(x / wider)];
  }
}

// --- upsampling: a triangle filter, three parts of the nearer sample and one of the other ---

function wide(s, o, width, out) {
  out[0] = s[o];
  out[1] = (s[o] * 3 + s[o + 1] + 2) >> 2;
  for (let x = 1; x < width - 1; x++) {
    const here = s[o + x] * 3;
    out[2 * x] = (here + s[o + x - 1] + 1) >> 2;
    out[2 * x + 1] = (here + s[o + x + 1] + 2) >> 2;
  }
  const end = o + width - 1;
  out[2 * width - 2] = (s[end] * 3 + s[end - 1] + 1) >> 2;
  out[2 * width - 1] = s[end];
}

function high(s, o, other, width, out, bias) {
  for (let x = 0; x < width; x++) out[x] = (s[o + x] * 3 + s[other + x] + bias) >> 2;
}

function both(s, o, other, width, out) {
  let here = s[o] * 3 + s[other];
  let next = s[o + 1] * 3 + s[other + 1];
  out[0] = (here * 4 + 8) >> 4;
  out[1] = (here * 3 + next + 7) >> 4;
  let before = here;
  here = next;
  for (let x = 1; x < width - 1; x++) {
    next = s[o + x + 1] * 3 + s[other + x + 1];
    out[2 * x] = (here * 3 + before + 8) >> 4;
    out[2 * x + 1] = (here * 3 + next + 7) >> 4;
    before = here;
    here = next;
  }
  out[2 * width - 2] = (here * 3 + before + 8) >> 4;
  out[2 * width - 1] = (here * 4 + 7) >> 4;
}

// --- inverse transforms of a block to 8, 4, 2 or 1 samples a side; 128 lies in the middle ---

const TRANSFORMS = { 8: transform8, 4: transform4, 2: transform2, 1: transform1 };
const fix = (x) => Math.round(x * (1 << BITS));
const half = (bits) => 1 << (bits - 1);

// The constants of jidctint.c and jidctred.c, by size.
const [A, B, C] = [fix(0.298631336), fix(0.390180644), fix(0.5411961)];
const [D, E, G, H] = [fix(0.765366865), fix(0.899976223), fix(1.175875602), fix(1.501321110)];
const [I, J, K, L, M] = [fix(1.847759065), fix(1.961570560), fix(2.053119869), fix(2.562915447), fix(3.072711026)];

function transform8(c, o, q, out, to, stride) {
  const shift = BITS - EXTRA;
  for (let x = 0; x < 8; x++) {
    eight(
      c[o + x] * q[x], c[o + 8 + x] * q[8 + x], c[o + 16 + x] * q[16 + x], c[o + 24 + x] * q[24 + x],
      c[o + 32 + x] * q[32 + x], c[o + 40 + x] * q[40 + x], c[o + 48 + x] * q[48 + x], c[o + 56 + x] * q[56 + x],
      work, x, 8, shift, 0,
    ); // prettier-ignore
  }
  for (let y = 0; y < 64; y += 8, to += stride) {
    eight(
      work[y], work[y + 1], work[y + 2], work[y + 3], work[y + 4], work[y + 5], work[y + 6], work[y + 7],
      out, to, 1, BITS + EXTRA + 3, 128,
    ); // prettier-ignore
  }
}

/** One row or column of jpeg_idct_islow. */
function eight(v0, v1, v2, v3, v4, v5, v6, v7, out, to, step, shift, middle) {
  const round = half(shift);
  const z = (v2 + v6) * C;
  const t2 = z - v6 * I;
  const t3 = z + v2 * D;
  const t0 = (v0 + v4) << BITS;
  const t1 = (v0 - v4) << BITS;
  const e0 = t0 + t3;
  const e3 = t0 - t3;
  const e1 = t1 + t2;
  const e2 = t1 - t2;
  const z5 = (v7 + v3 + v5 + v1) * G;
  const z1 = -(v7 + v1) * E;
  const z2 = -(v5 + v3) * L;
  const z3 = -(v7 + v3) * J + z5;
  const z4 = -(v5 + v1) * B + z5;
  const o0 = v7 * A + z1 + z3;
  const o1 = v5 * K + z2 + z4;
  const o2 = v3 * M + z2 + z3;
  const o3 = v1 * H + z1 + z4;
  out[to] = ((e0 + o3 + round) >> shift) + middle;
  out[to + 7 * step] = ((e0 - o3 + round) >> shift) + middle;
  out[to + step] = ((e1 + o2 + round) >> shift) + middle;
  out[to + 6 * step] = ((e1 - o2 + round) >> shift) + middle;
  out[to + 2 * step] = ((e2 + o1 + round) >> shift) + middle;
  out[to + 5 * step] = ((e2 - o1 + round) >> shift) + middle;
  out[to + 3 * step] = ((e3 + o0 + round) >> shift) + middle;
  out[to + 4 * step] = ((e3 - o0 + round) >> shift) + middle;
}

const [P, Q, R, S] = [fix(0.211164243), fix(1.451774981), fix(2.172734803), fix(1.061594337)];
const [T, U] = [fix(0.509795579), fix(0.601344887)];

function transform4(c, o, q, out, to, stride) {
  for (let x = 0; x < 8; x++) {
    if (x === 4) continue; // the averages of neighbours do not depend on it
    four(
      c[o + x] * q[x], c[o + 8 + x] * q[8 + x], c[o + 16 + x] * q[16 + x], c[o + 24 + x] * q[24 + x],
      c[o + 40 + x] * q[40 + x], c[o + 48 + x] * q[48 + x], c[o + 56 + x] * q[56 + x],
      work, x, 8, BITS - EXTRA + 1, 0,
    ); // prettier-ignore
  }
  for (let y = 0; y < 32; y += 8, to += stride) {
    four(
      work[y], work[y + 1], work[y + 2], work[y + 3], work[y + 5], work[y + 6], work[y + 7],
      out, to, 1, BITS + EXTRA + 4, 128,
    ); // prettier-ignore
  }
}

function four(v0, v1, v2, v3, v5, v6, v7, out, to, step, shift, middle) {
  const round = half(shift);
  const even = v2 * I - v6 * D;
  const t0 = (v0 << (BITS + 1)) + even;
  const t2 = (v0 << (BITS + 1)) - even;
  const inner = -v7 * P + v5 * Q - v3 * R + v1 * S;
  const outer = -v7 * T - v5 * U + v3 * E + v1 * L;
  out[to] = ((t0 + outer + round) >> shift) + middle;
  out[to + 3 * step] = ((t0 - outer + round) >> shift) + middle;
  out[to + step] = ((t2 + inner + round) >> shift) + middle;
  out[to + 2 * step] = ((t2 - inner + round) >> shift) + middle;
}

const [V, W, X, Y] = [fix(0.720959822), fix(0.850430095), fix(1.272758580), fix(3.624509785)];

function transform2(c, o, q, out, to, stride) {
  for (const x of [0, 1, 3, 5, 7]) {
    two(
      c[o + x] * q[x], c[o + 8 + x] * q[8 + x], c[o + 24 + x] * q[24 + x], c[o + 40 + x] * q[40 + x],
      c[o + 56 + x] * q[56 + x], work, x, 8, BITS - EXTRA + 2, 0,
    ); // prettier-ignore
  }
  for (let y = 0; y < 16; y += 8, to += stride) {
    two(work[y], work[y + 1], work[y + 3], work[y + 5], work[y + 7], out, to, 1, BITS + EXTRA + 5, 128);
  }
}

function two(v0, v1, v3, v5, v7, out, to, step, shift, middle) {
  const [mean, round] = [v0 << (BITS + 2), half(shift)];
  const odd = -v7 * V + v5 * W - v3 * X + v1 * Y;
  out[to] = ((mean + odd + round) >> shift) + middle;
  out[to + step] = ((mean - odd + round) >> shift) + middle;
}

function transform1(c, o, q, out, to) {
  out[to] = ((c[o] * q[0] + 4) >> 3) + 128;
}

// --- colours ---

/** The picture {width, height, data, cmyk}; data of `cmyk` are its four inks, as Pillow has them. */
export function coloured({ frame, scale, adobe, jfif }) {
  const picture = blank(Math.ceil(frame.width / scale), Math.ceil(frame.height / scale));
  const { planes } = frame;
  for (const plane of planes) plane.finish();
  const rows = planes.map((plane) => new Uint8ClampedArray(Math.max(picture.width, 2 * plane.width) + 1));
  const paint = painter(planes, adobe, jfif);
  for (let y = 0; y < picture.height; y++) {
    planes.forEach((plane, n) => plane.row(y, rows[n]));
    paint(picture.data, 4 * y * picture.width, rows, picture.width);
  }
  return { ...picture, cmyk: planes.length === 4, grey: planes.length === 1 };
}

/** What lays a row: the colours are guessed as in jdapimin.c. */
function painter(planes, adobe, jfif) {
  if (planes.length === 1) return (data, at, [grey], width) => each(data, at, width, grey, grey, grey);
  if (planes.length === 4) return adobe === 2 ? inksOfYcck : inks;
  const letters = String.fromCharCode(...planes.map(({ id }) => id));
  const plain = !jfif && (adobe === null ? letters === "RGB" : adobe === 0);
  return plain ? (data, at, [r, g, b], width) => each(data, at, width, r, g, b) : fromYcc;
}

function each(data, at, width, red, green, blue) {
  for (let x = 0; x < width; x++, at += 4) {
    data[at] = red[x];
    data[at + 1] = green[x];
    data[at + 2] = blue[x];
    data[at + 3] = 255;
  }
}

const scaled = (x, round) => Int32Array.from({ length: 256 }, (_, v) => Math.round(x * 65536) * (v - 128) + round);
const RED = scaled(1.402, 32768).map((v) => v >> 16);
const BLUE = scaled(1.772, 32768).map((v) => v >> 16);
const [GREEN_BY_CB, GREEN_BY_CR] = [scaled(-0.34414, 32768), scaled(-0.71414, 0)];

function fromYcc(data, at, [luma, cb, cr], width) {
  for (let x = 0; x < width; x++, at += 4) {
    data[at] = luma[x] + RED[cr[x]];
    data[at + 1] = luma[x] + ((GREEN_BY_CB[cb[x]] + GREEN_BY_CR[cr[x]]) >> 16);
    data[at + 2] = luma[x] + BLUE[cb[x]];
    data[at + 3] = 255;
  }
}

/** Inks are stored inverted: Pillow turns all of them. */
function inks(data, at, rows, width) {
  for (let x = 0; x < width; x++, at += 4) for (let n = 0; n < 4; n++) data[at + n] = 255 - rows[n][x];
}

function inksOfYcck(data, at, rows, width) {
  fromYcc(data, at, rows, width); // 255 - ink, which is turned again
  for (let x = 0; x < width; x++, at += 4) data[at + 3] = 255 - rows[3][x];
}
