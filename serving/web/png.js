// PNG to pixels, as Pillow and imaging/depth.py read it.
//
// A browser would give the same for most, but not for 16 bits, half transparent colours and files
// that state a gamma: it lays pictures out for a screen.

import { blank, roundEven } from "./resize.js";
import { Trouble } from "./trouble.js";

const CHANNELS = { 0: 1, 2: 3, 3: 1, 4: 2, 6: 4 }; // by colour type (PNG specification, 11.2.2)
const DEPTHS = { 0: [1, 2, 4, 8, 16], 2: [8, 16], 3: [1, 2, 4, 8], 4: [8, 16], 6: [8, 16] };
const GREY = [0, 4];
// Where the passes of an interlaced picture start, and their steps (8.2).
const PASSES = [[0, 0, 8, 8], [4, 0, 8, 8], [0, 4, 4, 8], [2, 0, 4, 4], [0, 2, 2, 4], [1, 0, 2, 2], [0, 1, 1, 2]]; // prettier-ignore

/** The parts of a PNG: header, data and what else is wanted; `tagged`: all but the orientation. */
export function chunksOf(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const [found, kept] = [{ IDAT: [], ended: false }, [bytes.subarray(0, 8)]];
  for (let at = 8; at + 12 <= bytes.length; ) {
    const [length, name] = [view.getUint32(at), String.fromCharCode(...bytes.subarray(at + 4, at + 8))];
    const body = bytes.subarray(at + 8, at + 8 + length);
    if (name !== "eXIf" && name !== "iTXt") kept.push(bytes.subarray(at, at + 12 + length));
    if (name === "IDAT") found.IDAT.push(body);
    else if (name === "IEND") {
      found.ended = true;
      break;
    }
    else found[name] ??= body;
    at += 12 + length;
  }
  if (!found.IHDR || found.IHDR.length < 13) throw new Trouble("photo", "the file is damaged");
  const head = new DataView(found.IHDR.buffer, found.IHDR.byteOffset);
  const [width, height] = [head.getUint32(0), head.getUint32(4)];
  const [depth, type, , , interlaced] = found.IHDR.subarray(8, 13);
  if (!DEPTHS[type]?.includes(depth) || !width || !height) throw new Trouble("photo", "the file is damaged");
  return { ...found, tagged: kept, width, height, depth, type, interlaced };
}

/** The profile of an iCCP chunk: name, zero, method, deflated bytes. */
export async function profileOf({ iCCP: chunk }) {
  if (!chunk) return null;
  try {
    return await inflated([chunk.subarray(chunk.indexOf(0) + 2)], 2 ** 24, true);
  } catch {
    return null;
  }
}

/** Deflated parts as bytes: `length` of them, or where `less` says so, as many as there are. */
async function inflated(parts, length, less = false) {
  const stream = new Blob(parts).stream().pipeThrough(new DecompressionStream("deflate"));
  const [reader, result] = [stream.getReader(), new Uint8Array(less ? Math.min(length, 2 ** 24) : length)];
  let filled = 0;
  while (filled < length) {
    const { done, value } = await reader.read();
    if (done) break;
    result.set(value.subarray(0, length - filled), filled);
    filled += value.length;
  }
  reader.cancel().catch(() => {}); // bytes after the end count for nothing
  if (filled < length && !less) throw new Trouble("photo", "the file is truncated");
  return result.subarray(0, Math.min(filled, length));
}

/**
 * The pixels {width, height, data} with alpha in the fourth byte, of 8 bits.
 *
 * opaque: whether no pixel can be transparent. grey: whether the colours are greys.
 */
export async function decodePng(chunks, preprocess) {
  const { width, height, depth, type, interlaced } = chunks;
  const passes = interlaced ? PASSES : [[0, 0, 1, 1]];
  const bits = depth * CHANNELS[type];
  const laid = passes.map(([left, top, across, down]) => {
    const size = { width: Math.ceil((width - left) / across), height: Math.ceil((height - top) / down) };
    size.stride = size.width > 0 ? Math.ceil((size.width * bits) / 8) : 0;
    size.bytes = size.stride && size.height > 0 ? (size.stride + 1) * size.height : 0;
    return { left, top, across, down, ...size };
  });
  const total = laid.reduce((sum, pass) => sum + pass.bytes, 0);
  const raw = await inflated(chunks.IDAT, total).catch((error) => {
    if (error instanceof Trouble) throw error;
    throw new Trouble("photo", `the file is ${chunks.ended ? "damaged" : "truncated"}`);
  });
  const samples = depth === 16 ? new Uint16Array(width * height * CHANNELS[type]) : null;
  const values = samples || new Uint8Array(width * height * CHANNELS[type]);
  let at = 0;
  for (const pass of laid) {
    if (!pass.bytes) continue;
    const part = raw.subarray(at, (at += pass.bytes));
    unfilter(part, pass, Math.max(1, bits >> 3));
    spread(part, pass, values, width, depth, CHANNELS[type]);
  }
  return { ...coloured(values, chunks, preprocess), grey: GREY.includes(type) };
}

/** Undoes the filters of rows (9.2), in place. */
function unfilter(rows, { stride, height }, step) {
  const nothing = new Uint8Array(stride + 1);
  let above = nothing;
  for (let y = 0; y < height; y++) {
    const row = rows.subarray(y * (stride + 1), (y + 1) * (stride + 1));
    const undo = FILTERS[row[0]];
    if (!undo) throw new Trouble("photo", "the file is damaged");
    undo(row, above, step);
    above = row;
  }
}

// By their numbers; the first byte of a row, the number, is none of its samples.
const FILTERS = [
  () => {},
  (row, above, step) => {
    for (let x = step + 1; x < row.length; x++) row[x] += row[x - step];
  },
  (row, above) => {
    for (let x = 1; x < row.length; x++) row[x] += above[x];
  },
  (row, above, step) => {
    for (let x = 1; x < row.length; x++) row[x] += ((x > step ? row[x - step] : 0) + above[x]) >> 1;
  },
  (row, above, step) => {
    for (let x = 1; x <= Math.min(step, row.length - 1); x++) row[x] += above[x];
    for (let x = step + 1; x < row.length; x++) row[x] += paeth(row[x - step], above[x], above[x - step]);
  },
];

function paeth(left, up, corner) {
  const guess = left + up - corner;
  const a = Math.abs(guess - left);
  const b = Math.abs(guess - up);
  const c = Math.abs(guess - corner);
  return a <= b && a <= c ? left : b <= c ? up : corner;
}

/** The numbers of one pass, at their places in the picture. */
function spread(rows, { left, top, across, down, width, height, stride }, values, whole, depth, count) {
  const mask = 2 ** Math.min(depth, 8) - 1;
  for (let y = 0; y < height; y++) {
    const start = y * (stride + 1) + 1;
    if (depth === 8 && across === 1) {
      values.set(rows.subarray(start, start + stride), (top + y * down) * whole * count);
      continue;
    }
    for (let x = 0; x < width; x++) {
      const to = ((top + y * down) * whole + left + x * across) * count;
      for (let c = 0; c < count; c++) {
        const n = x * count + c;
        if (depth === 16) values[to + c] = (rows[start + 2 * n] << 8) | rows[start + 2 * n + 1];
        else if (depth === 8) values[to + c] = rows[start + n];
        else values[to + c] = (rows[start + ((n * depth) >> 3)] >> (8 - depth - ((n * depth) & 7))) & mask;
      }
    }
  }
}

function coloured(values, chunks, { ranges }) {
  const { width, height, depth, type, tRNS } = chunks;
  const picture = blank(width, height);
  const tables = depth === 16 ? depthOf(values, type, ranges) : spreadTables(depth);
  const opaque = type < 4 && !tRNS;
  if (type === 3) fromPalette(values, picture.data, chunks);
  else lay(values, picture.data, CHANNELS[type], tables);
  const see = tRNS && seeThrough(chunks, tables.all);
  if (see) for (let at = 0; at < picture.data.length; at += 4) if (see(picture.data, at)) picture.data[at + 3] = 0;
  return { ...picture, opaque };
}

/** Of up to 8 bits: numbers spread over a byte. */
function spreadTables(depth) {
  const table = Uint8Array.from({ length: 2 ** depth }, (_, value) => (value * 255) / (2 ** depth - 1));
  return { colours: table, alpha: table, all: false };
}

function fromPalette(values, data, { PLTE, tRNS }) {
  const table = new Uint8Array(4 * 256);
  for (let n = 0; n < 256; n++) {
    for (let c = 0; c < 3; c++) table[4 * n + c] = PLTE?.[3 * n + c] ?? 0;
    table[4 * n + 3] = tRNS?.[n] ?? 255;
  }
  for (let n = 0, to = 0; n < values.length; n++, to += 4) {
    for (let c = 0; c < 4; c++) data[to + c] = table[4 * values[n] + c];
  }
}

function lay(values, data, channels, { colours, alpha }) {
  const [second, third] = channels > 2 ? [1, 2] : [0, 0];
  for (let from = 0, to = 0; to < data.length; from += channels, to += 4) {
    data[to] = colours[values[from]];
    data[to + 1] = colours[values[from + second]];
    data[to + 2] = colours[values[from + third]];
    data[to + 3] = channels % 2 ? 255 : alpha[values[from + channels - 1]];
  }
}

/** Whether a pixel has the one colour that tRNS makes transparent, compared as Pillow does. */
function seeThrough({ tRNS, type, depth }, wide) {
  if ((type === 0 && depth === 16) || wide || type === 3) return null;
  const told = [0, 2, 4].map((at) => tRNS[at + 1] + (type === 2 ? 0 : 256 * tRNS[at]));
  const one = depth === 1 && type === 0 ? 255 * Number(told[0] > 0) : told[0];
  if (type === 0) return (data, at) => data[at] === one;
  return (data, at) => data[at] === told[0] && data[at + 1] === told[1] && data[at + 2] === told[2];
}

/**
 * How numbers of 16 bits become bytes: depth.narrowed.
 *
 * Greys are scaled by the range of the data set, colours lose their lower bytes unless that range
 * ends below 65535. `ranges` is null for old checkpoints, which take any numbers.
 */
function depthOf(values, type, ranges) {
  const within = ranges?.["16-bit"];
  const fewer = Boolean(within) && within[1] < 65535;
  if (ranges) checkRange(measured(values, type), within);
  if (type !== 0 && !fewer) {
    const upper = Uint8Array.from({ length: 65536 }, (_, value) => value >> 8);
    return { colours: upper, alpha: upper, all: false };
  }
  const alphas = CHANNELS[type] % 2 === 0 ? values.filter((_, n) => (n + 1) % CHANNELS[type] === 0) : [];
  const most = alphas.reduce((a, b) => Math.max(a, b), 0);
  return {
    colours: scaler(within || [0, 65535]),
    alpha: scaler([0, fewer && most > within[1] ? 65535 : within?.[1] || 65535]),
    all: type !== 0,
  };
}

/** depth.Wide: of colours by their upper bytes, without alpha. */
function measured(values, type) {
  const channels = CHANNELS[type];
  const colours = channels % 2 ? channels : channels - 1;
  let [low, high] = [65535, 0];
  for (let n = 0; n < values.length; n++) {
    if (n % channels >= colours) continue;
    if (values[n] < low) low = values[n];
    if (values[n] > high) high = values[n];
  }
  if (type === 0) return { low, high, middle: median(values) };
  return { low: 256 * (low >> 8), high: 256 * (high >> 8) + 255, middle: 256 * (low >> 8) };
}

/** depth.misfit, where the middle number must lie in the range of the data set, and _own_range. */
function checkRange({ low, high, middle }, within) {
  const spoken = `its 16-bit numbers go from ${low} to ${high}`;
  if (!within) {
    if (high === 0 || high >= 4096) return;
    const why = "no photo of the model's data set tells which of them is white";
    throw new Trouble("photo", `${spoken}, and ${why}: save it with 8 bits`);
  }
  const slack = 0.1 * (within[1] - within[0]);
  if (middle < within[0] - slack || middle > within[1] + slack) {
    throw new Trouble("photo", `${spoken}, beyond ${within[0]} to ${within[1]}, the range of the data set`);
  }
}

function median(values) {
  const counts = new Uint32Array(65536);
  for (const value of values) counts[value]++;
  const place = (wanted) => {
    let value = -1;
    for (let seen = 0; seen <= wanted; ) seen += counts[++value];
    return value;
  };
  return (place((values.length - 1) >> 1) + place(values.length >> 1)) / 2;
}

/** depth._scaled as a table, in its floats of 32 bits. */
function scaler([low, high]) {
  const factor = Math.fround(255 / (high - low));
  return Uint8Array.from({ length: 65536 }, (_, value) => {
    const held = Math.fround(Math.min(Math.max(value, low), high) - Math.fround(low));
    return roundEven(Math.fround(held * factor));
  });
}
