// Similarity transforms of the plane, and images warped by them: the counterpart of photos/geometry.py.
//
// Positions are [x, y] in px from the image's top left corner: the centre of the first pixel is at (0.5, 0.5).
// A matrix [a, b, x, c, d, y] maps (u, v) to (a u + b v + x, c u + d v + y).
// An image is {data, width, height} with four values a pixel; the results of functions have the type of its data.

export const shift = ([x, y]) => [1, 0, x, 0, 1, y];
export const stretch = (x, y) => [x, 0, 0, 0, y, 0];

export function turn(scale, angle) {
  const [cos, sin] = [scale * Math.cos(angle), scale * Math.sin(angle)];
  return [cos, -sin, 0, sin, cos, 0];
}

/** The matrix that applies several, the last one first. */
export function chain(...matrices) {
  return matrices.reduce(([a, b, x, c, d, y], [e, f, u, g, h, v]) => [
    a * e + b * g, a * f + b * h, a * u + b * v + x,
    c * e + d * g, c * f + d * h, c * u + d * v + y,
  ]);
}

export function inverse([a, b, x, c, d, y]) {
  const area = a * d - b * c;
  return [d / area, -b / area, (b * y - d * x) / area, -c / area, a / area, (c * x - a * y) / area];
}

export function transform([a, b, x, c, d, y], points) {
  return points.map(([u, v]) => [a * u + b * v + x, c * u + d * v + y]);
}

export const scaleOf = (matrix) => Math.hypot(matrix[0], matrix[3]);

export function mean(points) {
  const sum = points.reduce(([x, y], [u, v]) => [x + u, y + v], [0, 0]);
  return [sum[0] / points.length, sum[1] / points.length];
}

export const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

export const distance = ([x, y], [u, v]) => Math.hypot(x - u, y - v);

/** The similarity that maps points to others with the least squared error (Umeyama 1991). */
export function similarity(source, target) {
  const [from, to] = [mean(source), mean(target)];
  let [spread, cos, sin] = [0, 0, 0];
  source.forEach(([px, py], i) => {
    const [x, y, u, v] = [px - from[0], py - from[1], target[i][0] - to[0], target[i][1] - to[1]];
    spread += x * x + y * y;
    cos += x * u + y * v;
    sin += x * v - y * u;
  });
  spread = Math.max(spread, 1e-12);
  return chain(shift(to), [cos / spread, -sin / spread, 0, sin / spread, cos / spread, 0], shift([-from[0], -from[1]]));
}

/** The matrix that maps positions in an image after `count` quarter turns to the left to an image of this size. */
export function quarterTurnsBack(count, { width, height }) {
  const sides = [width, height, width].slice(0, count).reverse();
  return sides.reduce((matrix, side) => chain([0, -1, side, 1, 0, 0], matrix), shift([0, 0]));
}

export function emptyImage(width, height, like) {
  return { data: new like.data.constructor(4 * width * height), width, height };
}

/** An image of floating-point numbers, each computed from a value of another image and its index. */
export function map(image, compute) {
  return { data: Float32Array.from(image.data, compute), width: image.width, height: image.height };
}

/** A part of an image. */
export function crop(image, left, top, width, height) {
  const part = emptyImage(width, height, image);
  for (let y = 0; y < height; y++) {
    const start = 4 * ((top + y) * image.width + left);
    part.data.set(image.data.subarray(start, start + 4 * width), 4 * y * width);
  }
  return part;
}

/** Apply a similarity to an image, without aliasing when the image shrinks. */
export function warp(image, matrix, size, options) {
  // Cut out the part of the image that the result needs, with a margin for the interpolation.
  const scale = scaleOf(matrix);
  const corners = transform(inverse(matrix), [[0, 0], [size[0], 0], [0, size[1]], size]);
  const margin = 2 + 2 / scale;
  const [left, right] = range(corners.map((corner) => corner[0]), margin, image.width);
  const [top, bottom] = range(corners.map((corner) => corner[1]), margin, image.height);
  let part = crop(image, left, top, right - left, bottom - top);
  matrix = chain(matrix, shift([left, top]));
  // Average pixels before the warp, which only interpolates between neighbours.
  if (scale < 1) {
    const [width, height] = [part.width, part.height].map((side) => Math.max(1, Math.round(side * scale)));
    matrix = chain(matrix, stretch(part.width / width, part.height / height));
    part = resizeArea(part, width, height);
  }
  return warpAffine(part, matrix, size, options);
}

function range(values, margin, side) {
  const low = clamp(Math.floor(Math.min(...values) - margin), 0, side - 1);
  return [low, clamp(Math.ceil(Math.max(...values) + margin), low + 1, side)];
}

/** Apply a matrix to an image; `replicate` repeats the border's pixels outside of it, where there is black without. */
export function warpAffine(image, matrix, [width, height], { cubic = false, replicate = false } = {}) {
  const result = emptyImage(width, height, image);
  const [a, b, x0, c, d, y0] = inverse(matrix);
  const sample = sampler(image, { cubic, replicate });
  for (let y = 0, target = 0; y < height; y++) {
    for (let x = 0; x < width; x++, target += 4) {
      result.data.set(sample(a * (x + 0.5) + b * (y + 0.5) + x0, c * (x + 0.5) + d * (y + 0.5) + y0), target);
    }
  }
  return result;
}

/** An image in which each pixel is what another shows at a distance from it: the first two values of `distance`, px. */
export function displace(image, distance) {
  const result = emptyImage(image.width, image.height, image);
  const sample = sampler(image, { cubic: true, replicate: true });
  for (let y = 0, i = 0; y < image.height; y++) {
    for (let x = 0; x < image.width; x++, i += 4) {
      result.data.set(sample(x + 0.5 + distance.data[i], y + 0.5 + distance.data[i + 1]), i);
    }
  }
  return result;
}

/** A function that interpolates an image's four values at a position; each call overwrites what the last returned. */
function sampler(image, { cubic, replicate }) {
  const [numTaps, first, weights] = cubic ? [4, -1, cubicWeights] : [2, 0, linearWeights];
  const [across, down, sums] = [new Float64Array(4), new Float64Array(4), new Float64Array(4)];
  return (x, y) => {
    const [left, top] = [Math.floor(x - 0.5), Math.floor(y - 0.5)];
    weights(x - 0.5 - left, across);
    weights(y - 0.5 - top, down);
    sums.fill(0);
    for (let j = 0; j < numTaps; j++) {
      let row = top + first + j;
      if (row < 0 || row >= image.height) {
        if (!replicate) continue;
        row = row < 0 ? 0 : image.height - 1;
      }
      for (let i = 0; i < numTaps; i++) {
        let column = left + first + i;
        if (column < 0 || column >= image.width) {
          if (!replicate) continue;
          column = column < 0 ? 0 : image.width - 1;
        }
        const source = 4 * (row * image.width + column);
        const weight = across[i] * down[j];
        for (let k = 0; k < 4; k++) sums[k] += weight * image.data[source + k];
      }
    }
    return sums;
  };
}

function linearWeights(t, weights) {
  weights[0] = 1 - t;
  weights[1] = t;
}

// Keys' cubic convolution with the slope -0.75, as OpenCV has it.
const near = (x) => (1.25 * x - 2.25) * x * x + 1;
const far = (x) => ((-0.75 * x + 3.75) * x - 6) * x + 3;

function cubicWeights(t, weights) {
  weights[0] = far(1 + t);
  weights[1] = near(t);
  weights[2] = near(1 - t);
  weights[3] = far(2 - t);
}

/** Interpolate between the nearest pixels. */
export function resizeLinear(image, width, height) {
  return warpAffine(image, stretch(width / image.width, height / image.height), [width, height], { replicate: true });
}

/** Shrink an image: each pixel becomes the mean of the area that it covers. */
export function resizeArea(image, width, height) {
  const [columns, rows] = [coverage(image.width, width), coverage(image.height, height)];
  const narrow = { data: new Float32Array(4 * width * image.height), width, height: image.height };
  sumAreas(image, narrow, image.height, columns, { step: 4, sourceLine: 4 * image.width, targetLine: 4 * width });
  const result = emptyImage(width, height, image);
  sumAreas(narrow, result, width, rows, { step: 4 * width, sourceLine: 4, targetLine: 4 });
  return result;
}

/** For each pixel of a shorter line, the first one that it covers, and the weights of those. */
function coverage(from, to) {
  const ratio = from / to;
  return Array.from({ length: to }, (_, i) => {
    const [start, end] = [i * ratio, Math.min((i + 1) * ratio, from)];
    const first = Math.floor(start + 1e-9);
    const weights = [];
    for (let j = first; j < end - 1e-9; j++) weights.push((Math.min(j + 1, end) - Math.max(j, start)) / ratio);
    return { first, weights };
  });
}

function sumAreas(source, target, numLines, areas, { step, sourceLine, targetLine }) {
  for (let line = 0; line < numLines; line++) {
    areas.forEach(({ first, weights }, i) => {
      for (let k = 0; k < 4; k++) {
        let sum = 0;
        for (let j = 0; j < weights.length; j++) {
          sum += weights[j] * source.data[line * sourceLine + (first + j) * step + k];
        }
        target.data[line * targetLine + i * step + k] = sum;
      }
    });
  }
}
