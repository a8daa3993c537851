// From a photo's file to an upright picture in sRGB, as imaging/decoding.py reads it.

import { Trouble } from "./trouble.js";
import { readProfile } from "./colour.js";
import { readContainer } from "./containers.js";
import { decodeJpeg } from "./jpeg.js";
import { decodePng } from "./png.js";
import { addReduced, blank, draftScale, shortSide } from "./resize.js";

const MOST_BYTES = 2 ** 30;
const MOST_PIXELS = 178956970; // Pillow's limit
const MOST_ON_A_SIDE = 1000000;
const TILE = 2048; // pixels of a side that are read from a canvas at once: phones bound its size

/** The picture {width, height, data} in a file (a Blob); throws Trouble where there is none. */
export async function loadPhoto(file, preprocess) {
  if (file.size > MOST_BYTES) throw new Trouble("large", "a file of that size is no photo");
  const bytes = new Uint8Array(await file.arrayBuffer());
  if (!bytes.length) throw new Trouble("photo", "the file is empty");
  let found;
  try {
    found = await readContainer(bytes);
  } catch (error) {
    throw error instanceof Trouble ? error : new Trouble("photo", "the file is damaged");
  }
  checkSize(found.width, found.height);
  return upright(await decoded(found, file.type, preprocess), found.orientation);
}

function checkSize(width, height) {
  if (width * height > MOST_PIXELS || Math.max(width, height) > MOST_ON_A_SIDE) {
    throw new Trouble("large", `it has ${width} x ${height} pixels`);
  }
}

async function decoded(found, type, preprocess) {
  const profile = preprocess.colour_space === "srgb" && found.profile ? readProfile(found.profile) : null;
  const tables = profile?.tables && (profile.mode === "CMYK") === (found.colours === 4);
  // A conversion by tables of colours is the browser's, which then needs the profile.
  const picture =
    (tables && (await byBrowser(found.tagged, type, true, draftOf(found, preprocess)))) ||
    (await byHand(found, preprocess)) ||
    (await byBrowser(found.bare, type, found.kind === "other", draftOf(found, preprocess)));
  if (picture.cmyk) fromInks(picture.data);
  else if (fits(profile, picture.grey)) profile.convert(picture.data);
  if (!picture.opaque) layOnWhite(picture.data);
  return picture;
}

/** What is decoded in this page: PNG, and nearly all JPEG; else null. */
async function byHand(found, preprocess) {
  if (found.kind === "png") return decodePng(found.chunks, preprocess);
  return found.kind === "jpeg" ? decodeJpeg(found.bare, draftOf(found, preprocess)) : null;
}

function draftOf({ kind, width, height }, preprocess) {
  return kind === "jpeg" ? draftScale(width, height, shortSide(preprocess)) : 1;
}

/** Pillow's inks to red, green and blue, in place. */
function fromInks(data) {
  for (let at = 0; at < data.length; at += 4) {
    const light = 255 - data[at + 3];
    for (let n = 0; n < 3; n++) {
      const product = data[at + n] * light + 128;
      data[at + n] = light - (((product >> 8) + product) >> 8);
    }
    data[at + 3] = 255;
  }
}

function fits(profile, grey) {
  return Boolean(profile?.convert) && (grey || profile.mode !== "L");
}

/** What the browser decodes, in tiles; of a JPEG the part of its size that Pillow takes. */
async function byBrowser(bytes, type, converted, scale) {
  // Some decoders cut fractions off when they multiply colours by alpha.
  const options = { colorSpaceConversion: converted ? "default" : "none", premultiplyAlpha: "none" };
  const bitmap = await createImageBitmap(new Blob([bytes], { type }), options).catch(() => {
    throw new Trouble("photo", "this browser cannot decode it: save it as JPEG or PNG");
  });
  const { width, height } = bitmap;
  checkSize(width, height);
  const picture = blank(Math.ceil(width / scale), Math.ceil(height / scale));
  const canvas = new OffscreenCanvas(Math.min(TILE, width), Math.min(TILE, height));
  const context = canvas.getContext("2d", { willReadFrequently: true });
  for (let top = 0; top < height; top += TILE) {
    for (let left = 0; left < width; left += TILE) {
      context.clearRect(0, 0, TILE, TILE);
      context.drawImage(bitmap, -left, -top);
      const tile = context.getImageData(0, 0, Math.min(TILE, width - left), Math.min(TILE, height - top));
      if (scale === 1) addPiece(picture, tile, left, top);
      else addReduced(picture, tile, scale, left, top);
    }
  }
  bitmap.close();
  return picture;
}

function addPiece(target, { width, height, data }, left, top) {
  for (let y = 0; y < height; y++) {
    target.data.set(data.subarray(4 * y * width, 4 * (y + 1) * width), 4 * ((top + y) * target.width + left));
  }
}

/** Pillow's paste of colours with their alpha over white. */
function layOnWhite(data) {
  for (let at = 0; at < data.length; at += 4) {
    const alpha = data[at + 3];
    if (alpha === 255) continue;
    for (let c = 0; c < 3; c++) {
      const sum = 255 * (255 - alpha) + data[at + c] * alpha + 128;
      data[at + c] = ((sum >> 8) + sum) >> 8;
    }
  }
}

// Where the pixel (x, y) of the upright picture lies in the stored one, w x h (EXIF 2.3, 4.6.4 A).
const STORED = {
  2: (x, y, w) => [w - 1 - x, y],
  3: (x, y, w, h) => [w - 1 - x, h - 1 - y],
  4: (x, y, w, h) => [x, h - 1 - y],
  5: (x, y) => [y, x],
  6: (x, y, w, h) => [y, h - 1 - x],
  7: (x, y, w, h) => [w - 1 - y, h - 1 - x],
  8: (x, y, w) => [w - 1 - y, x],
};

export function upright(picture, orientation) {
  const stored = STORED[orientation];
  if (!stored) return picture;
  const { width: w, height: h } = picture;
  const result = orientation >= 5 ? blank(h, w) : blank(w, h);
  const [from, to] = [picture.data, result.data].map((data) => new Uint32Array(data.buffer));
  for (let y = 0, at = 0; y < result.height; y++) {
    for (let x = 0; x < result.width; x++, at++) {
      const [column, row] = stored(x, y, w, h);
      to[at] = from[row * w + column];
    }
  }
  return result;
}

/** Whether a page can read pixels at all: some browsers garble them against being recognised. */
export function pixelsAreTrue() {
  const context = new OffscreenCanvas(16, 16).getContext("2d", { willReadFrequently: true });
  const image = context.createImageData(16, 16);
  image.data.forEach((_, at) => (image.data[at] = at % 4 === 3 ? 255 : (at * 37) % 256));
  context.putImageData(image, 0, 0);
  const read = context.getImageData(0, 0, 16, 16).data;
  return read.every((value, at) => value === image.data[at]);
}
