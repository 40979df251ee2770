// Align faces to the crops that a generator was trained on, and paste the translated crops back: the counterpart of
// photos/crops.py, whose names and numbers these are.

import { chain, clamp, crop, displace, emptyImage, inverse, map, shift, similarity, stretch, transform, warp, warpAffine } from "./geometry.js";

const FACE_CENTRE = 0.45;
const FACE_HEIGHT = 1.4;
const FACE_WIDTH = 1.15;
const FACE_INSIDE = 0.72;
const BORDER = 0.04;
const BORDER_FADE = 0.12;
const UPSCALING = 4;
const SURROUNDINGS = 0.06;
const DETAIL_STAYS = 15;
const DETAIL_GOES = 60;

const inCrop = (template, size) => template.map(([x, y]) => [x * size, y * size]);

/** Cut out the crop around a face, `size` px wide, in which its landmarks lie where the template has them. */
export function align(image, face, template, size) {
  const matrix = similarity(face.landmarks, inCrop(template, size));
  return warp(image, matrix, [size, size], { cubic: true, replicate: true });
}

/** Do to an image, in place, what a generator has done to the crop that was cut from it. */
export function paste(image, face, template, { before, after, shift: moved }) {
  const size = before.width;
  const mask = pasteMask(size, template);
  const change = map(before, (value, i) => (after.data[i] - value) * mask[i >> 2]);
  const toImage = inverse(similarity(face.landmarks, inCrop(template, size)));
  const corners = transform(toImage, [[0, 0], [size, 0], [0, size], [size, size]]);
  const [left, right] = span(corners.map((corner) => corner[0]), image.width);
  const [top, bottom] = span(corners.map((corner) => corner[1]), image.height);
  if (right <= left || bottom <= top) return;
  const toPart = chain(shift([-left, -top]), toImage, stretch(1 / UPSCALING, 1 / UPSCALING));
  const fit = (crop) => warp(enlarge(crop), toPart, [right - left, bottom - top]).data;
  const own = crop(image, left, top, right - left, bottom - top);
  if (moved) {
    const [a, b, , c, d] = toImage;
    const turned = map(moved, (value, i) => {
      const [x, y] = moved.data.subarray(i - (i % 4), i - (i % 4) + 2);
      return mask[i >> 2] * [a * x + b * y, c * x + d * y, 0, 0][i % 4];
    });
    own.data.set(displace(own, { ...own, data: fit(turned) }).data);
  }
  const [added, smooth, fraction] = [fit(change), fit(map(before, (value) => value)), fit(lostDetail(change))];
  for (let y = top, i = 0; y < bottom; y++) {
    for (let x = left; x < right; x++, i += 4) {
      const at = 4 * (y * image.width + x);
      for (let k = 0; k < 3; k++) {
        const replaced = (own.data[i + k] - smooth[i + k]) * fraction[i + k];
        const changed = clamp(Math.round(own.data[i + k] + added[i + k]), 0, 255);
        image.data[at + k] = changed - replaced; // the assignment rounds and clips
      }
    }
  }
}

function span(values, side) {
  return [clamp(Math.floor(Math.min(...values)), 0, side), clamp(Math.ceil(Math.max(...values)), 0, side)];
}

/** The fraction of the image's own detail that a change replaces, 0 to 1. */
function lostDetail(change) {
  const blurred = gaussianBlur(change, SURROUNDINGS * change.width).data;
  const local = map(change, (value, i) => Math.abs(value - blurred[i]));
  const largest = map(local, (_, i) => Math.max(...local.data.subarray(i - (i % 4), i - (i % 4) + 3)));
  return map(gaussianBlur(largest, 1), (value) => clamp((value - DETAIL_STAYS) / (DETAIL_GOES - DETAIL_STAYS), 0, 1));
}

/** A Gaussian blur with a standard deviation in px; beyond the border the image is mirrored about its last pixels. */
function gaussianBlur(image, sigma) {
  const radius = Math.round(8 * sigma + 1) >> 1;
  const kernel = Float64Array.from({ length: 2 * radius + 1 }, (_, i) => Math.exp(-((i - radius) ** 2) / (2 * sigma ** 2)));
  const sum = kernel.reduce((one, other) => one + other);
  const size = image.width;
  const mirrored = (i) => (i < 0 ? -i : i >= size ? 2 * size - 2 - i : i);
  const pass = (source, position) => map(source, (_, index) => {
    const [x, y, k] = [(index >> 2) % size, Math.floor((index >> 2) / size), index % 4];
    let total = 0;
    for (let i = -radius; i <= radius; i++) total += kernel[i + radius] * source.data[4 * position(x, y, i) + k];
    return total / sum;
  });
  const narrow = pass(image, (x, y, i) => y * size + mirrored(x + i));
  return pass(narrow, (x, y, i) => mirrored(y + i) * size + x);
}

function enlarge(crop) {
  const side = UPSCALING * crop.width;
  return warpAffine(crop, stretch(UPSCALING, UPSCALING), [side, side], { cubic: true, replicate: true });
}

/** How much of a crop's change is pasted: 1 in the face, 0 at the border and beyond the face. */
export function pasteMask(size, template) {
  const [rightEye, leftEye, , rightMouth, leftMouth] = inCrop(template, size);
  const middle = ([x, y], [u, v]) => [(x + u) / 2, (y + v) / 2];
  const [eyes, mouth] = [middle(rightEye, leftEye), middle(rightMouth, leftMouth)];
  const eyeDistance = Math.max(Math.hypot(leftEye[0] - rightEye[0], leftEye[1] - rightEye[1]), 1e-6);
  const faceLength = Math.max(Math.hypot(mouth[0] - eyes[0], mouth[1] - eyes[1]), 1e-6);
  const yAxis = [(mouth[0] - eyes[0]) / faceLength, (mouth[1] - eyes[1]) / faceLength];
  const xAxis = [yAxis[1], -yAxis[0]];
  const centre = [0, 1].map((i) => eyes[i] + FACE_CENTRE * (mouth[i] - eyes[i]));
  const mask = new Float32Array(size * size);
  const toBorder = (i) => 1 - Math.abs((2 * (i + 0.5)) / size - 1); // in half sides
  for (let row = 0; row < size; row++) {
    for (let column = 0; column < size; column++) {
      const [u, v] = [column + 0.5 - centre[0], row + 0.5 - centre[1]];
      const x = (u * xAxis[0] + v * xAxis[1]) / (FACE_WIDTH * eyeDistance);
      const y = (u * yAxis[0] + v * yAxis[1]) / (FACE_HEIGHT * faceLength);
      const fromBorder = (Math.min(toBorder(row), toBorder(column)) - BORDER) / BORDER_FADE;
      const fade = clamp(Math.min((1 - Math.hypot(x, y)) / (1 - FACE_INSIDE), fromBorder), 0, 1);
      mask[row * size + column] = fade * fade * (3 - 2 * fade);
    }
  }
  return mask;
}
