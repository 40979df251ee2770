// Find faces in images, whichever way they are turned, with steady landmarks: the counterpart of photos/faces.py, whose
// names and numbers these are.

import {
  chain, distance, inverse, mean, quarterTurnsBack, resizeArea, resizeLinear, scaleOf, shift, similarity, stretch,
  transform, turn, warp, warpAffine,
} from "./geometry.js";

const MIN_SCORE = 0.5;
const SURE_SCORE = 0.925;
const MIN_UPRIGHT_SCORE = 0.7;
const SMALL_MIN_SCORE = 0.35;
const SMALL_MIN_UPRIGHT_SCORE = 0.88;
const SMALL_MIN_EYES = 12;
const DETECTION_SIDE = 640;
const FINEST_SCALE = 0.5;
const FINE_PIXELS = 4.5e6;
const MIN_STEP = 1.6;
const MAX_STEP = 2;
const EYES_IN_BOX = 0.45;
const WINDOW_SIDE = 160;
const WINDOW_EYES = 44;
const CLOSE_UP = 1.5;
const TURN_MARGIN = 1.5;
const WINDOW_TARGET = [[-0.5, -0.56], [0.5, -0.56], [0, 0.02], [-0.41, 0.55], [0.41, 0.55]]
  .map(([x, y]) => [WINDOW_EYES * x, WINDOW_EYES * y]);
const MIRROR = stretch(-1, 1);
const SWAPPED = [1, 0, 2, 4, 3];
// The four jitters that photos/faces.py draws: angle in degrees, scale, and the centre, px.
export const JITTERS = [
  [1.643540, 0.963166, 74.491682, 74.198332],
  [3.759243, 1.066041, 81.279629, 82.753959],
  [0.523500, 1.069612, 83.790243, 74.032862],
  [4.288851, 0.925374, 82.755865, 76.107867],
];

/** The faces in an image as {landmarks, score}, the largest first; `detect` is what `openDetector` returns. */
export async function findFaces(detect, image) {
  const faces = [];
  for (const copy of copies(image)) {
    for (let quarterTurns = 0; quarterTurns < 4; quarterTurns++) {
      const helpful = faces.length ? faces.map(turnsToUpright) : [...Array(copy.numTurns).keys()];
      if (helpful.includes(quarterTurns)) faces.push(...(await newFaces(detect, image, copy, quarterTurns, faces)));
    }
  }
  return faces.sort((one, other) => eyeDistance(other) - eyeDistance(one));
}

const eyeDistance = ({ landmarks }) => distance(landmarks[0], landmarks[1]);

/** The copies of an image to search one after the other, each finer than the one before. */
function* copies(image) {
  const steps = scales(image.height, image.width);
  for (const [number, scale] of steps.entries()) {
    const [width, height] = [image.width, image.height].map((side) => Math.max(1, Math.round(side * scale)));
    const resize = number === 0 ? resizeLinear : resizeArea;
    const pixels = scale < 1 ? resize(image, width, height) : image;
    const toImage = stretch(image.width / width, image.height / height);
    const isLast = number === steps.length - 1;
    const strict = { minUprightScore: SMALL_MIN_UPRIGHT_SCORE, minEyes: SMALL_MIN_EYES };
    const rules = number === 0 ? { minUprightScore: MIN_UPRIGHT_SCORE, minEyes: 0 } : strict;
    const minScore = number > 0 && isLast ? SMALL_MIN_SCORE : MIN_SCORE;
    yield { pixels, toImage, minScore, numTurns: number > 0 && isLast ? 1 : 4, ...rules };
  }
}

function scales(height, width) {
  const first = Math.min(1, DETECTION_SIDE / Math.max(height, width));
  const finest = Math.min(FINEST_SCALE, Math.sqrt(FINE_PIXELS / (height * width)));
  if (finest <= MIN_STEP * first) return [first];
  const numSteps = Math.ceil(Math.log(finest / first) / Math.log(MAX_STEP));
  return Array.from({ length: numSteps + 1 }, (_, step) => first * (finest / first) ** (step / numSteps));
}

/** The faces that a copy shows after some quarter turns, without those that are known from the copies before. */
async function newFaces(detect, image, copy, quarterTurns, known) {
  const back = quarterTurnsBack(quarterTurns, copy.pixels);
  const { width, height } = copy.pixels;
  const turnedSize = quarterTurns % 2 ? [height, width] : [width, height];
  const turned = quarterTurns ? warpAffine(copy.pixels, inverse(back), turnedSize) : copy.pixels;
  const faces = [];
  for (const found of await detect(turned, copy.minScore)) {
    const inCopy = through(found, back);
    const inImage = through(inCopy, copy.toImage);
    if (eyesOf(inImage) < copy.minEyes || known.some((face) => isPart(inImage, face))) continue;
    const hasDetail = eyesOf(inCopy) >= WINDOW_EYES;
    const face = hasDetail
      ? await refine(detect, copy.pixels, inCopy, copy.toImage)
      : await refine(detect, image, inImage, shift([0, 0]));
    if (!face || face.score < copy.minUprightScore) continue;
    if (![...known, ...faces].some((other) => isSame(face, other))) faces.push(face);
  }
  return faces;
}

const eyesOf = (detection) => EYES_IN_BOX * detection.side;

/** The same detection in another image's coordinates. */
function through({ landmarks, centre, side, score }, matrix) {
  const moved = transform(matrix, [centre])[0];
  return { landmarks: transform(matrix, landmarks), centre: moved, side: side * scaleOf(matrix), score };
}

/** The face with steady landmarks, in the coordinates that `onward` leads to; null where later passes find none. */
async function refine(detect, image, detection, onward) {
  const scale = Math.min(1, CLOSE_UP * WINDOW_EYES / eyesOf(detection));
  const side = Math.round(CLOSE_UP * WINDOW_SIDE * TURN_MARGIN);
  const [x, y] = detection.centre;
  const toCloseUp = chain(shift([side / 2, side / 2]), stretch(scale, scale), shift([-x, -y]));
  const closeUp = warp(image, toCloseUp, [side, side], { cubic: true });
  const face = await averagePasses(detect, closeUp, await upright(detect, closeUp, through(detection, toCloseUp)));
  return face && { ...face, landmarks: transform(chain(onward, inverse(toCloseUp)), face.landmarks) };
}

/** The detection that scores highest in eight windows, each turned by 45 degrees: there the face is upright. */
async function upright(detect, image, detection) {
  if (detection.score >= SURE_SCORE) return detection;
  const scale = WINDOW_EYES / eyesOf(detection);
  const [x, y] = detection.centre;
  let best = null;
  for (let angle = 0; angle < 2 * Math.PI - 0.1; angle += Math.PI / 4) {
    const window = chain(shift([WINDOW_SIDE / 2, WINDOW_SIDE / 2]), turn(scale, angle), shift([-x, -y]));
    const found = await detectInWindow(detect, image, window);
    if (found && (!best || found.score > best.score)) best = found;
  }
  return best;
}

/** The mean of several upright detections of a face, each plain and mirrored; null where one of them fails. */
async function averagePasses(detect, image, detection) {
  if (!detection) return null;
  const passes = [{ landmarks: detection.landmarks, score: 0 }];
  for (const [degrees, scale, x, y] of JITTERS) {
    const jitter = chain(shift([x, y]), turn(scale, degrees * Math.PI / 180));
    const toUpright = similarity(passes.at(-1).landmarks, WINDOW_TARGET);
    const plain = await detectInWindow(detect, image, chain(jitter, toUpright));
    const mirrored = await detectInWindow(detect, image, chain(jitter, MIRROR, toUpright));
    if (!plain || !mirrored) return null;
    const landmarks = plain.landmarks.map((point, i) => mean([point, mirrored.landmarks[SWAPPED[i]]]));
    passes.push({ landmarks, score: (plain.score + mirrored.score) / 2 });
  }
  const counted = passes.slice(2); // the first windows are not yet upright
  const score = counted.reduce((sum, pass) => sum + pass.score, 0) / counted.length;
  return { landmarks: counted[0].landmarks.map((_, i) => mean(counted.map((pass) => pass.landmarks[i]))), score };
}

/** The face in the middle of a window, in the image's coordinates; `toWindow` leads from the image to it. */
async function detectInWindow(detect, image, toWindow) {
  const detections = await detect(warpAffine(image, toWindow, [WINDOW_SIDE, WINDOW_SIDE]), MIN_SCORE);
  const middle = [WINDOW_SIDE / 2, WINDOW_SIDE / 2];
  const near = detections.find((found) => distance(found.centre, middle) < WINDOW_EYES); // the best comes first
  return near ? through(near, inverse(toWindow)) : null;
}

function isSame(face, other) {
  const apart = distance(mean(face.landmarks), mean(other.landmarks));
  return apart < Math.min(eyeDistance(face), eyeDistance(other)) / 2;
}

const isPart = (detection, face) => distance(detection.centre, mean(face.landmarks)) < eyeDistance(face);

/** The quarter turns of the image to the left, 0 to 3, after which a face leans by 45 degrees or less. */
function turnsToUpright({ landmarks }) {
  const angle = Math.atan2(landmarks[1][1] - landmarks[0][1], landmarks[1][0] - landmarks[0][0]);
  return (Math.round(angle / (Math.PI / 2)) + 4) % 4;
}
