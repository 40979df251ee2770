// Translate the faces in a photograph: the counterpart of photos/translator.py.

import { findFaces } from "./detect.js";
import { clamp, displace, map } from "./geometry.js";
import { align, paste } from "./paste.js";
import { openDetector } from "./yunet.js";
import * as ort from "./runtime/ort.wasm.bundle.min.mjs";

ort.env.wasm.numThreads = 1; // Threads need headers that a plain web server does not send.

export class Translator {
  /** Read what the models are, and the face detector; the generators are read when they are needed. */
  static async load(folder = "models") {
    const translator = new Translator();
    translator.folder = folder;
    translator.models = await (await fetch(`${folder}/models.json`)).json();
    translator.detect = await openDetector(ort, `${folder}/yunet.onnx`);
    translator.sessions = {};
    return translator;
  }

  /**
   * Translate the faces in an image, in place.
   *
   * `image` is an ImageData; `direction` is "ab" or "ba"; `strength` is 0 to 3. Returns the number of faces.
   */
  async translate(image, { direction, strength }) {
    const { template, image_size: size } = this.models;
    const faces = await findFaces(this.detect, image);
    const crops = faces.map((face) => align(image, face, template, size));
    for (const [i, crop] of crops.entries()) paste(image, faces[i], template, await this.run(crop, direction, strength));
    return faces.length;
  }

  /**
   * Run a generator on a crop, 0 to 255, and tell what it has done.
   *
   * Returns {before, after, shift}: from how far away each pixel has been taken, px, which is undefined where none has
   * moved, the crop with its pixels moved, and the translated crop, of floating-point numbers of the same range.
   */
  async run(crop, direction, strength) {
    this.sessions[direction] ??= await ort.InferenceSession.create(`${this.folder}/gen_${direction}.onnx`);
    const numPixels = crop.width * crop.height;
    const planes = new Float32Array(3 * numPixels);
    for (let i = 0; i < numPixels; i++) {
      for (let k = 0; k < 3; k++) planes[k * numPixels + i] = crop.data[4 * i + k] / 127.5 - 1;
    }
    const image = new ort.Tensor("float32", planes, [1, 3, crop.height, crop.width]);
    const inputs = { image, strength: new ort.Tensor("float32", [strength], []) };
    const { translation, shift: moved } = await this.sessions[direction].run(inputs);
    const output = (planes, i) => planes.data[(i % 4) * numPixels + (i >> 2)]; // for the value at i of an image
    const pixels = map(crop, (value) => value);
    const after = map(crop, (value, i) => (i % 4 < 3 ? (output(translation, i) + 1) * 127.5 : value));
    if (!moved) return { before: pixels, after };
    const shift = map(crop, (_, i) => (i % 4 < 2 ? output(moved, i) * [crop.width, crop.height][i % 4] : 0));
    return { before: map(displace(pixels, shift), (value) => clamp(value, 0, 255)), after, shift };
  }
}
