// The page: a photograph comes from a file, a drop or the camera; its translation can be saved.

import { Translator } from "./translate.js";

const element = (id) => document.getElementById(id);
const [status, canvas, video] = [element("status"), element("result"), element("video")];
const [direction, strength, camera] = [element("direction"), element("strength"), element("camera")];
const context = canvas.getContext("2d", { willReadFrequently: true });
let translator = null;
let original = null; // the ImageData of the photograph
let busy = false;
let changed = false; // whether something was chosen while the page was busy

function say(text) {
  status.textContent = text;
}

/** Show an image and translate it. */
function open(source, width, height) {
  [canvas.width, canvas.height] = [width, height];
  context.fillStyle = "white"; // behind transparent pixels
  context.fillRect(0, 0, width, height);
  context.drawImage(source, 0, 0);
  original = context.getImageData(0, 0, width, height);
  update();
}

async function openFile(file) {
  if (!file) return;
  try {
    const bitmap = await createImageBitmap(file); // upright, in sRGB
    open(bitmap, bitmap.width, bitmap.height);
  } catch (error) {
    say(`${file.name} is not an image that this browser can read: ${error.message}`);
  }
}

/** Translate the photograph as chosen; what is chosen meanwhile is done next. */
async function update() {
  element("strength-value").textContent = Number(strength.value).toFixed(1);
  changed = true;
  if (!original || !translator || busy) return;
  busy = true;
  element("save").disabled = true;
  while (changed) {
    changed = false;
    await translate();
  }
  busy = false;
  element("save").disabled = false;
}

async function translate() {
  say("Translating …");
  await new Promise((resolve) => setTimeout(resolve)); // the browser shows the text before the work begins
  const source = original;
  const image = new ImageData(source.data.slice(), source.width, source.height);
  const start = performance.now();
  try {
    const chosen = { direction: direction.value, strength: Number(strength.value) };
    const numFaces = await translator.translate(image, chosen);
    if (source !== original) return; // another photograph has been opened meanwhile
    context.putImageData(image, 0, 0);
    const seconds = ((performance.now() - start) / 1000).toFixed(1);
    say(numFaces ? `Translated ${numFaces} face${numFaces > 1 ? "s" : ""} in ${seconds} s.` : "No face was found.");
  } catch (error) {
    say(`The photograph could not be translated: ${error.message}`);
  }
}

async function toggleCamera() {
  if (video.srcObject) {
    if (!video.videoWidth) return; // the camera has not shown anything yet
    open(video, video.videoWidth, video.videoHeight);
    stopCamera();
    return;
  }
  try {
    video.srcObject = await navigator.mediaDevices.getUserMedia({ video: true });
    video.hidden = false;
    camera.textContent = "Take the picture";
  } catch (error) {
    say(`There is no camera to use: ${error.message}`);
  }
}

function stopCamera() {
  for (const track of video.srcObject.getTracks()) track.stop();
  video.srcObject = null;
  video.hidden = true;
  camera.textContent = "Use the camera";
}

function save() {
  canvas.toBlob((blob) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = "translated.png";
    link.click();
    URL.revokeObjectURL(link.href);
  });
}

function useStoredStrength() {
  strength.value = translator.models.strength[direction.value];
}

async function start() {
  element("file").addEventListener("change", (event) => openFile(event.target.files[0]));
  camera.addEventListener("click", toggleCamera);
  element("save").addEventListener("click", save);
  strength.addEventListener("input", update);
  direction.addEventListener("change", () => {
    useStoredStrength();
    update();
  });
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    openFile(event.dataTransfer.files[0]);
  });
  try {
    translator = await Translator.load();
  } catch (error) {
    say(`The models could not be loaded: ${error.message}`);
    return;
  }
  for (const [way, name] of Object.entries(translator.models.names)) {
    const title = name.replace(/(^| to )./g, (start) => start.slice(0, -1) + start.at(-1).toUpperCase());
    direction.add(new Option(title, way));
  }
  useStoredStrength();
  say("Choose a photograph, or drop one here.");
  update();
}

start();
