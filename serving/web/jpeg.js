// JPEG to pixels, bit for bit as libjpeg gives them to Pillow: also at 1/2, 1/4 and 1/8 of the size,
// which no browser offers, and CMYK as it is stored.
//
// This half reads the file: markers, Huffman codes, coefficients. jpeg_samples.js makes samples of
// coefficients, and colours of samples. Arithmetic coding is not read: `decodeJpeg` gives null.

import { coloured, Plane } from "./jpeg_samples.js";
import { Trouble } from "./trouble.js";

// The places of the coefficients in the order in which they are coded (ITU T.81, figure A.6).
// prettier-ignore
const ZIGZAG = Uint8Array.from([
  0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7, 14, 21, 28,
  35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
  63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, // damaged runs end here
]);
const MOST_SCANS = 100; // each goes over the whole picture, and costs a hostile file a few bytes
const FRAMES = [0xc0, 0xc1, 0xc2]; // sequential and progressive, by Huffman's codes
const DAMAGED = () => new Trouble("photo", "the file is damaged");

/** {width, height, data, cmyk} at 1/scale of the size; null for a kind that is not read here. */
export function decodeJpeg(bytes, scale) {
  const file = { bytes, scale, tables: {}, quant: {}, restart: 0, adobe: null, jfif: false, frame: null };
  for (let at = 2; at < bytes.length; ) {
    if (bytes[at] !== 0xff) {
      at++; // between segments nothing counts but markers
      continue;
    }
    const marker = bytes[at + 1];
    if (marker === 0xd9) break;
    if (marker === 0xff || marker === 0 || marker === 1 || (marker >= 0xd0 && marker <= 0xd8)) {
      at += marker === 0xff ? 1 : 2;
      continue;
    }
    const end = at + 2 + ((bytes[at + 2] << 8) | bytes[at + 3]);
    const body = bytes.subarray(at + 4, end);
    if (marker === 0xda) {
      if (!file.frame) throw DAMAGED();
      at = readScan(file, body, end);
      if (file.frame.finished) break;
    } else {
      if (!readSegment(file, marker, body)) return null;
      at = end;
    }
  }
  if (!file.frame?.scans) throw new Trouble("photo", "the file is truncated");
  return coloured(file);
}

/** Takes in what a segment says; whether it can be read here. */
function readSegment(file, marker, body) {
  if (marker === 0xdb) readQuantisation(file, body);
  else if (marker === 0xc4) readCodes(file, body);
  else if (marker === 0xdd) file.restart = (body[0] << 8) | body[1];
  else if (marker === 0xe0) file.jfif ||= String.fromCharCode(...body.subarray(0, 5)) === "JFIF\0";
  else if (marker === 0xee && String.fromCharCode(...body.subarray(0, 5)) === "Adobe") file.adobe = body[11];
  else if (FRAMES.includes(marker)) return readFrame(file, body, marker === 0xc2);
  else if (marker >= 0xc3 && marker <= 0xcf && marker !== 0xc8) return false;
  return true;
}

function readQuantisation(file, body) {
  for (let at = 0; at < body.length; ) {
    const [wide, place] = [body[at] >> 4, body[at++] & 15];
    const table = new Int32Array(64);
    for (let k = 0; k < 64; k++, at += 1 + wide) table[ZIGZAG[k]] = wide ? (body[at] << 8) | body[at + 1] : body[at];
    file.quant[place] = table;
  }
}

/** Huffman's codes as a table by the next 16 bits: length << 8 | symbol. */
function readCodes(file, body) {
  for (let at = 0; at < body.length; ) {
    const place = body[at];
    const table = new Uint16Array(65536);
    let [code, next] = [0, at + 17];
    for (let length = 1; length <= 16; length++) {
      const span = 1 << (16 - length);
      for (let n = body[at + length]; n > 0; n--, code += span) table.fill((length << 8) | body[next++], code, code + span);
    }
    file.tables[place] = table;
    at = next;
  }
}

function readFrame(file, body, progressive) {
  const [height, width] = [(body[1] << 8) | body[2], (body[3] << 8) | body[4]];
  if (body[0] !== 8 || file.frame || !width || !height) return false;
  const parts = Array.from({ length: body[5] }, (_, n) => body.subarray(6 + 3 * n, 9 + 3 * n));
  if (![1, 3, 4].includes(parts.length)) return false;
  const most = [0, 1].map((axis) => Math.max(...parts.map((part) => (axis ? part[1] & 15 : part[1] >> 4))));
  if (parts.some((part) => !(part[1] >> 4) || !(part[1] & 15) || most[0] % (part[1] >> 4) || most[1] % (part[1] & 15))) return false;
  const across = Math.ceil(width / (8 * most[0]));
  const down = Math.ceil(height / (8 * most[1]));
  file.frame = { width, height, progressive, most, across, down, scans: 0, finished: false };
  file.frame.planes = parts.map(([id, sampling, quant]) => new Plane(file, id, sampling >> 4, sampling & 15, quant));
  return true;
}

/** Decodes a scan; returns where the next marker stands. */
function readScan(file, body, at) {
  const { frame } = file;
  const parts = Array.from({ length: body[0] }, (_, n) => {
    const plane = frame.planes.find(({ id }) => id === body[1 + 2 * n]);
    if (!plane) throw DAMAGED();
    const codes = body[2 + 2 * n];
    return Object.assign(plane, { dc: file.tables[codes >> 4], ac: file.tables[16 + (codes & 15)], last: 0 });
  });
  const [first, last, bits] = body.subarray(1 + 2 * parts.length);
  const scan = { first, last, high: bits >> 4, low: bits & 15, run: 0 };
  for (const plane of parts) plane.table ??= file.quant[plane.quant]; // as it is when first wanted
  const whole = !frame.progressive && parts.length === frame.planes.length;
  for (const plane of parts) plane.begin(whole);
  const code = new Bits(file.bytes, at);
  const block = blockReader(frame.progressive, scan);
  if (++frame.scans > MOST_SCANS) throw new Trouble("photo", "it has more scans than any photo");
  const interval = file.restart || Infinity;
  let left = interval;
  const renew = () => {
    if (left-- > 0) return;
    code.restart();
    scan.run = 0;
    for (const plane of parts) plane.last = 0;
    left = interval - 1;
  };
  if (parts.length === 1) alone(parts[0], block, code, renew);
  else together(frame, parts, block, code, renew);
  frame.finished = whole;
  return code.end();
}

function alone(plane, block, code, renew) {
  for (let row = 0; row < plane.ownDown; row++) {
    for (let column = 0; column < plane.ownAcross; column++) {
      renew();
      plane.decode(block, code, row, column);
    }
  }
}

function together({ across, down }, parts, block, code, renew) {
  for (let top = 0; top < down; top++) {
    for (let left = 0; left < across; left++) {
      renew();
      for (const plane of parts) {
        for (let y = 0; y < plane.v; y++) {
          for (let x = 0; x < plane.h; x++) plane.decode(block, code, top * plane.v + y, left * plane.h + x);
        }
      }
    }
  }
}

/** The bits of a scan. Before a marker come zeros, as many as are wanted; the end of the file throws. */
class Bits {
  constructor(bytes, at) {
    Object.assign(this, { bytes, at, held: 0, count: 0 });
  }

  fill() {
    while (this.count <= 16) {
      let byte = this.bytes[this.at];
      if (byte === undefined) {
        if (this.at > this.bytes.length + 8) throw new Trouble("photo", "the file is truncated");
        byte = 0;
        this.at++;
      } else if (byte !== 0xff) this.at++;
      else if (this.bytes[this.at + 1] === 0) this.at += 2;
      else byte = 0;
      this.held = (this.held << 8) | byte;
      this.count += 8;
    }
  }

  /** The next `n` bits, at most 16, as a number. */
  take(n) {
    if (n === 0) return 0;
    if (this.count < n) this.fill();
    this.count -= n;
    return (this.held >>> this.count) & ((1 << n) - 1);
  }

  /** The next symbol of a table of codes. */
  symbol(table) {
    if (this.count < 16) this.fill();
    const found = table[(this.held >>> (this.count - 16)) & 0xffff];
    this.count -= found >> 8;
    return found & 0xff;
  }

  /** A number of `n` bits whose first bit tells its sign (T.81, F.2.2.1). */
  signed(n) {
    const value = this.take(n);
    return n && value < 1 << (n - 1) ? value - (1 << n) + 1 : value;
  }

  /** Goes on after the next marker, a restart. */
  restart() {
    const at = this.end();
    const marker = this.bytes[at + 1];
    this.at = marker >= 0xd0 && marker <= 0xd7 ? at + 2 : at;
    this.held = this.count = 0;
  }

  /** Where the next marker stands: `fill` passes none. */
  end() {
    for (let at = this.at; at < this.bytes.length; at++) {
      if (this.bytes[at] === 0xff && this.bytes[at + 1] !== 0 && this.bytes[at + 1] !== 0xff) return at;
    }
    return this.bytes.length;
  }
}

/** The function that decodes one block into 64 coefficients `c` from `o` on. */
function blockReader(progressive, scan) {
  if (!progressive) return sequential;
  const name = `${scan.first ? "ac" : "dc"}${scan.high ? "Again" : "First"}`;
  return (code, plane, c, o) => PROGRESSIVE[name](code, plane, c, o, scan);
}

function sequential(code, plane, c, o) {
  plane.last += code.signed(code.symbol(plane.dc) & 15);
  c[o] = plane.last;
  for (let k = 1; k < 64; k++) {
    const symbol = code.symbol(plane.ac);
    const size = symbol & 15;
    k += symbol >> 4;
    if (size) c[o + ZIGZAG[k]] = code.signed(size);
    else if (symbol >> 4 !== 15) break;
  }
}

const PROGRESSIVE = {
  dcFirst(code, plane, c, o, { low }) {
    plane.last += code.signed(code.symbol(plane.dc) & 15);
    c[o] = plane.last << low;
  },

  dcAgain(code, plane, c, o, { low }) {
    if (code.take(1)) c[o] |= 1 << low;
  },

  acFirst(code, plane, c, o, scan) {
    if (scan.run > 0) {
      scan.run--;
      return;
    }
    for (let k = scan.first; k <= scan.last; k++) {
      const symbol = code.symbol(plane.ac);
      const [zeros, size] = [symbol >> 4, symbol & 15];
      if (!size && zeros < 15) {
        scan.run = (1 << zeros) + code.take(zeros) - 1;
        return;
      }
      k += zeros;
      if (size) c[o + ZIGZAG[k]] = code.signed(size) << scan.low;
    }
  },

  /** One bit more of each number that is not zero, and new ones of one bit (T.81, G.1.2.3). */
  acAgain(code, plane, c, o, scan) {
    const bit = 1 << scan.low;
    let k = scan.first;
    for (; scan.run === 0 && k <= scan.last; k++) {
      const symbol = code.symbol(plane.ac);
      let [zeros, value] = [symbol >> 4, 0];
      if (symbol & 15) value = code.take(1) ? bit : -bit;
      else if (zeros < 15) {
        scan.run = (1 << zeros) + code.take(zeros);
        break;
      }
      for (; k <= scan.last; k++) {
        const at = o + ZIGZAG[k];
        if (c[at]) refine(code, c, at, bit);
        else if (zeros-- === 0) {
          if (value) c[at] = value;
          break;
        }
      }
    }
    if (scan.run > 0) {
      for (; k <= scan.last; k++) if (c[o + ZIGZAG[k]]) refine(code, c, o + ZIGZAG[k], bit);
      scan.run--;
    }
  },
};

function refine(code, c, at, bit) {
  if (code.take(1) && !(Math.abs(c[at]) & bit)) c[at] += c[at] > 0 ? bit : -bit;
}
