// The face detector YuNet: the counterpart of OpenCV's FaceDetectorYN, whose decoding this is.

const MIN_DETECTION_SIDE = 16;
const MAX_OVERLAP = 0.3;
const STRIDES = [8, 16, 32]; // YuNet has a cell for every so many pixels,
const MULTIPLE = 32; // and so the sides of its input are multiples of the largest.

/**
 * A function that runs one pass of YuNet over an image as it is, and returns the detections that score at least
 * `minScore`, the best first: {landmarks, centre, side, score}, with the centre and the mean side of the box in px.
 */
export async function openDetector(ort, address) {
  const session = await ort.InferenceSession.create(address);
  return (image, minScore) => detect(ort, session, image, minScore);
}

async function detect(ort, session, image, minScore) {
  if (Math.min(image.width, image.height) < MIN_DETECTION_SIDE) return [];
  const [width, height] = [image.width, image.height].map((side) => MULTIPLE * Math.max(2, Math.ceil(side / MULTIPLE)));
  const input = new Float32Array(3 * width * height);
  for (let y = 0; y < image.height; y++) {
    for (let x = 0; x < image.width; x++) {
      for (let k = 0; k < 3; k++) { // the planes are blue, green, red
        input[(k * height + y) * width + x] = image.data[4 * (y * image.width + x) + 2 - k];
      }
    }
  }
  const outputs = await session.run({ input: new ort.Tensor("float32", input, [1, 3, height, width]) });
  return suppress(STRIDES.flatMap((stride) => decode(outputs, stride, width / stride, minScore)));
}

/** The boxes and landmarks that the cells of one stride see. */
function decode(outputs, stride, numColumns, minScore) {
  const [cls, obj, bbox, kps] = ["cls", "obj", "bbox", "kps"].map((name) => outputs[`${name}_${stride}`].data);
  const found = [];
  cls.forEach((value, i) => {
    const score = Math.sqrt(clip(value) * clip(obj[i]));
    if (score < minScore) return;
    const [column, row] = [i % numColumns, Math.floor(i / numColumns)];
    const centre = [(column + bbox[4 * i]) * stride, (row + bbox[4 * i + 1]) * stride];
    const [w, h] = [Math.exp(bbox[4 * i + 2]) * stride, Math.exp(bbox[4 * i + 3]) * stride];
    const landmarks = [0, 1, 2, 3, 4].map((n) => [
      (column + kps[10 * i + 2 * n]) * stride, (row + kps[10 * i + 2 * n + 1]) * stride,
    ]);
    const box = [centre[0] - w / 2, centre[1] - h / 2, w, h].map(Math.trunc);
    found.push({ landmarks, centre, side: Math.sqrt(w * h), score, box });
  });
  return found;
}

const clip = (value) => Math.min(Math.max(value, 0), 1);

/** Without the detections that overlap too much with one of a higher score. */
function suppress(detections) {
  const kept = [];
  for (const found of detections.sort((one, other) => other.score - one.score)) {
    if (kept.every((other) => overlap(found.box, other.box) <= MAX_OVERLAP)) kept.push(found);
  }
  return kept;
}

function overlap([x, y, w, h], [u, v, width, height]) {
  const common = Math.max(0, Math.min(x + w, u + width) - Math.max(x, u))
    * Math.max(0, Math.min(y + h, v + height) - Math.max(y, v));
  return common / (w * h + width * height - common);
}
