// What the colours of a picture mean: imaging/colour.py in the browser.
//
// Profiles of red, green and blue by a matrix and curves (Display P3, Adobe RGB, ProPhoto) and those
// of grey are computed here, so that every browser gives the same. What holds tables of many colours
// (`tables`), printers' profiles above all, is left to the browser's own conversion.

const SAME = 4; // of 255: writers of sRGB profiles round its curve differently
const ONE = 16384; // littleCMS computes 8-bit colours with 14 bits of fraction (cmsopt.c)
// From ICC's connection space to light of sRGB's primaries, as littleCMS makes it of them.
const FROM_XYZ = [
  [3.1341863642, -1.617208959, -0.490694064],
  [-0.9787485042, 1.9161300968, 0.0334333992],
  [0.0719639278, -0.2289938735, 1.4057537329],
];
const KINDS = { "RGB ": "RGB", GRAY: "L", CMYK: "CMYK" };

/** {mode, convert, tables}: convert(data) changes RGBA bytes in place; null where none is due. */
export function readProfile(bytes) {
  const none = { mode: null, convert: null, tables: false };
  try {
    const profile = parsed(bytes);
    if (!profile) return none;
    const { mode, tags, name } = profile;
    if (mode === "CMYK" || tags.A2B0) {
      return { mode, convert: null, tables: mode === "CMYK" || !/srgb/i.test(name) };
    }
    const convert = mode === "L" ? fromGrey(tags.kTRC) : fromMatrix(tags);
    return { mode, convert: worthIt(convert, mode) ? convert : null, tables: false };
  } catch {
    return none; // of untrusted bytes; a photo is worth more than its metadata
  }
}

function parsed(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const word = (at) => String.fromCharCode(...bytes.subarray(at, at + 4));
  const mode = KINDS[word(16)];
  if (word(36) !== "acsp" || word(12) === "link" || !mode) return null;
  const tags = {};
  for (let n = 0; n < Math.min(view.getUint32(128), 100); n++) {
    const [at, size] = [view.getUint32(136 + 12 * n), view.getUint32(140 + 12 * n)];
    tags[word(132 + 12 * n)] = new DataView(bytes.buffer, bytes.byteOffset + at, size);
  }
  const told = tags.desc ? new Uint8Array(tags.desc.buffer, tags.desc.byteOffset, tags.desc.byteLength) : [];
  return { mode, tags, name: String.fromCharCode(...[...told].filter(Boolean).slice(0, 200)) };
}

/** From a tag of a curve to a function of 0..1. */
function curve(tag) {
  const kind = tag.getUint32(0);
  if (kind === 0x63757276) return sampled(tag); // "curv"
  if (kind !== 0x70617261) throw new Error("no curve"); // "para"
  const count = [1, 3, 4, 5, 7][tag.getUint16(8)];
  const p = Array.from({ length: count }, (_, n) => tag.getInt32(12 + 4 * n) / 65536);
  const [g, a = 1, b = 0] = p;
  const power = (x) => Math.max(0, a * x + b) ** g;
  if (count === 1) return power;
  if (count === 3) return (x) => (x >= -b / a ? power(x) : 0);
  if (count === 4) return (x) => (x >= -b / a ? power(x) + p[3] : p[3]);
  const [, , , c, d, e = 0, f = 0] = p;
  return (x) => (x >= d ? power(x) + e : c * x + f);
}

/** A curve of numbers of 16 bits, between which lines lie (cmsintrp.c, LinLerp1D). */
function sampled(tag) {
  const count = tag.getUint32(8);
  if (count === 0) return (x) => x;
  if (count === 1) return (x) => x ** (tag.getUint16(12) / 256);
  const value = (n) => tag.getUint16(12 + 2 * n);
  return (x) => {
    const at = (count - 1) * Math.floor(x * 65535 + 0.5);
    const fixed = at + Math.floor((at + 0x7fff) / 0xffff);
    const low = Math.floor(fixed / 65536);
    if (low >= count - 1) return value(count - 1) / 65535;
    const rise = (value(low + 1) - value(low)) * (fixed % 65536) + 0x8000;
    return (value(low) + Math.floor(rise / 65536)) / 65535;
  };
}

/** Light of each of the 256 numbers of a channel, in parts of ONE. */
function light(tag) {
  const of = curve(tag);
  return Float64Array.from({ length: 256 }, (_, v) => Math.floor(Math.fround(of(Math.fround(v / 255))) * ONE + 0.5));
}

let encoded; // light to bytes, made when first wanted

function toByte(part) {
  encoded ??= Uint8Array.from({ length: ONE + 1 }, (_, n) => {
    const x = n / ONE;
    const value = x >= ((0.04045 + 0.055) / 1.055) ** 2.4 ? (x ** (1 / 2.4) - 0.055 / 1.055) * 1.055 : x * 12.92;
    const word = Math.floor(Math.fround(value) * 65535 + 0.5);
    return Math.floor((word * 65281 + 8388608) / 2 ** 24);
  });
  return encoded[part < 0 ? 0 : part > ONE ? ONE : part];
}

function fromMatrix(tags) {
  const curves = [light(tags.rTRC), light(tags.gTRC), light(tags.bTRC)];
  const columns = [tags.rXYZ, tags.gXYZ, tags.bXYZ].map((tag) =>
    [8, 12, 16].map((at) => tag.getInt32(at) / 65536),
  );
  const products = FROM_XYZ.map((row) => columns.map((xyz) => row.reduce((s, v, i) => s + v * xyz[i], 0)));
  const m = products.map((row) => row.map((value) => Math.floor(value * ONE + 0.5)));
  const dark = columns.reduce((sum, xyz, n) => sum + xyz[1] * curves[n][0], 0);
  const byte = (sum) => toByte(lifted(Math.floor((sum + ONE / 2) / ONE), dark));
  return (data) => {
    for (let at = 0; at < data.length; at += 4) {
      const r = curves[0][data[at]];
      const g = curves[1][data[at + 1]];
      const b = curves[2][data[at + 2]];
      data[at] = byte(m[0][0] * r + m[0][1] * g + m[0][2] * b);
      data[at + 1] = byte(m[1][0] * r + m[1][1] * g + m[1][2] * b);
      data[at + 2] = byte(m[2][0] * r + m[2][1] * g + m[2][2] * b);
    }
  };
}

/** Light where black is no light: the darkest colour of a profile becomes black. */
function lifted(part, dark) {
  return dark > 0 ? Math.round(((part - dark) / (ONE - dark)) * ONE) : part;
}

function fromGrey(tag) {
  const of = light(tag);
  const bytes = of.map((part) => toByte(lifted(part, of[0])));
  return (data) => {
    for (let at = 0; at < data.length; at += 4) data.fill(bytes[data[at]], at, at + 3);
  };
}

/** Whether a conversion makes sense and changes more than rounding does, by a few colours. */
function worthIt(convert, mode) {
  const steps = mode === "L" ? Array.from({ length: 256 }, (_, v) => v) : [0, 51, 102, 153, 204, 255];
  const plain =
    mode === "L"
      ? steps.flatMap((v) => [v, v, v, 255])
      : steps.flatMap((r) => steps.flatMap((g) => steps.flatMap((b) => [r, g, b, 255])));
  const found = Uint8ClampedArray.from(plain);
  convert(found);
  const white = found.subarray(-4, -1);
  if (Math.max(...found.subarray(0, 3)) > 128 || Math.min(...white) < 128) return false;
  return found.some((value, at) => Math.abs(value - plain[at]) > SAME);
}
