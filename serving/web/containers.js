// What a photo's file says beside its pixels: size, orientation, profile; and the file without it.
//
// Browsers differ in what they make of an orientation or a profile, and one cannot tell all of them
// to leave both alone. So neither reaches them: they decode a bare copy.

import { Trouble } from "./trouble.js";
import { chunksOf, profileOf } from "./png.js";

const text = (bytes, start, end) => String.fromCharCode(...bytes.subarray(start, end));
const viewOf = (bytes) => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);

function joined(parts) {
  const all = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  parts.reduce((at, part) => (all.set(part, at), at + part.length), 0);
  return all;
}

/**
 * {kind, width, height, orientation, profile, bare, ...} of a file.
 *
 * kind: "jpeg" (with `colours`, their number), "png" (with its `chunks`), "webp", or "other", of
 * which nothing more is known. profile: bytes or null. bare: the file without profile and
 * orientation; tagged: with its profile, for what a browser has to convert.
 */
export async function readContainer(bytes) {
  if (bytes[0] === 0xff && bytes[1] === 0xd8 && bytes[2] === 0xff) return readJpeg(bytes);
  if (text(bytes, 0, 8) === "\x89PNG\r\n\x1a\n") return readPng(bytes);
  if (text(bytes, 0, 4) === "RIFF" && text(bytes, 8, 12) === "WEBP") return readWebp(bytes);
  return { kind: "other", orientation: 1, profile: null, bare: bytes, tagged: bytes };
}

async function readPng(bytes) {
  const chunks = chunksOf(bytes);
  const { width, height, eXIf, iTXt } = chunks;
  const orientation = orientationOf(eXIf, iTXt);
  const profile = await profileOf(chunks);
  return { kind: "png", width, height, orientation, profile, tagged: joined(chunks.tagged), chunks };
}

function readJpeg(bytes) {
  const [kept, profile, found] = [[bytes.subarray(0, 2)], [], {}];
  let at = 2;
  for (;;) {
    while (bytes[at] === 0xff && bytes[at + 1] === 0xff) at++; // fill bytes
    if (at + 4 > bytes.length) throw new Trouble("photo", "the file is truncated");
    if (bytes[at] !== 0xff) throw new Trouble("photo", "the file is damaged");
    const marker = bytes[at + 1];
    if (marker === 0xda) break; // the pixels begin
    const end = at + 2 + viewOf(bytes).getUint16(at + 2);
    const segment = bytes.subarray(at, end);
    if (!aside(marker, segment, found, profile)) kept.push(segment);
    at = end;
  }
  if (!found.frame) throw new Trouble("photo", "the file is damaged");
  kept.push(bytes.subarray(at));
  const { width, height, colours } = found.frame;
  const orientation = orientationOf(found.exif, found.xmp);
  const tagged = joined([kept[0], ...profile, ...kept.slice(1)]);
  return { kind: "jpeg", width, height, colours, orientation, profile: whole(profile), bare: joined(kept), tagged };
}

/** Whether a segment is left out for the browser; what it says goes to `found` and `profile`. */
function aside(marker, segment, found, profile) {
  const starts = (word) => text(segment, 4, 4 + word.length) === word;
  if (marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker)) {
    const view = viewOf(segment);
    found.frame ??= { height: view.getUint16(5), width: view.getUint16(7), colours: segment[9] };
  }
  if (marker === 0xe1 && starts("Exif\0\0")) {
    found.exif ??= segment.subarray(10);
    return true;
  }
  if (marker === 0xe1 && starts("http://ns.adobe.com/xap/1.0/\0")) {
    found.xmp = segment;
    return true;
  }
  if (marker === 0xe2 && starts("ICC_PROFILE\0")) {
    profile.push(segment);
    return true;
  }
  return false;
}

/** The profile from its numbered segments. */
function whole(segments) {
  if (!segments.length) return null;
  const sorted = [...segments].sort((a, b) => a[16] - b[16]);
  if (sorted[0][17] !== sorted.length) return null;
  return joined(sorted.map((segment) => segment.subarray(18)));
}

const FLAGS = { "ICCP": 0x20, "EXIF": 0x08, "XMP ": 0x04 }; // prettier-ignore

function readWebp(bytes) {
  const [view, chunks, found] = [viewOf(bytes), [], {}];
  for (let at = 12; at + 8 <= bytes.length; ) {
    const [name, size] = [text(bytes, at, at + 4), view.getUint32(at + 4, true)];
    const end = at + 8 + size + (size & 1);
    found[name] ??= bytes.subarray(at + 8, at + 8 + size);
    chunks.push({ name, bytes: bytes.subarray(at, end) });
    at = end;
  }
  const exif = found.EXIF && text(found.EXIF, 0, 6) === "Exif\0\0" ? found.EXIF.subarray(6) : found.EXIF;
  const orientation = orientationOf(exif, found["XMP "]);
  const [bare, tagged] = [["EXIF", "XMP ", "ICCP"], ["EXIF", "XMP "]].map((out) => webp(chunks, out));
  return { kind: "webp", orientation, profile: found.ICCP ?? null, bare, tagged };
}

/** A WebP of these chunks without those of some names. */
function webp(chunks, out) {
  const kept = chunks.filter(({ name }) => !out.includes(name)).map((chunk) => chunk.bytes);
  const file = joined([new TextEncoder().encode("RIFF----WEBP"), ...kept]);
  viewOf(file).setUint32(4, file.length - 8, true);
  if (text(file, 12, 16) === "VP8X") for (const name of out) file[20] &= ~FLAGS[name];
  return file;
}

/** The EXIF orientation, 1 to 8; without one, that of the XMP; 1 where there is none. */
export function orientationOf(exif, xmp) {
  let value = 0;
  try {
    value = exif ? fromTiff(exif) : 0;
  } catch {
    // of untrusted bytes; a photo is worth more than its metadata
  }
  if (!value && xmp) {
    const told = /tiff:Orientation(?:="|>)([0-9])/.exec(new TextDecoder("latin1").decode(xmp));
    value = told ? Number(told[1]) : 0;
  }
  return value >= 2 && value <= 8 ? value : 1;
}

function fromTiff(exif) {
  const view = viewOf(exif);
  const little = view.getUint16(0) === 0x4949;
  if (!little && view.getUint16(0) !== 0x4d4d) return 0;
  const start = view.getUint32(4, little);
  for (let n = 0; n < view.getUint16(start, little); n++) {
    const at = start + 2 + 12 * n;
    if (view.getUint16(at, little) !== 0x0112) continue;
    const kind = view.getUint16(at + 2, little);
    return kind === 4 ? view.getUint32(at + 8, little) : view.getUint16(at + 8, little);
  }
  return 0;
}
