// A scene as a file: the drawing itself, or a picture of it in pixels.

import { el } from "./dom.mjs";
import { pictureOf } from "./stage.mjs";

const PIXELS = 2; // of a PNG, for each pixel on the page

// Draws the text of an SVG file on a canvas. The policy of the page lets it show images that it made itself, and no
// others. createImageBitmap reads no SVG, neither in Chromium nor in Firefox.
/** @type {(text: string) => Promise<Blob>} */
async function pngOf(text) {
  const url = URL.createObjectURL(new Blob([text], { type: "image/svg+xml" }));
  try {
    const image = new Image();
    image.src = url;
    await image.decode();
    const [width, height] = [PIXELS * image.width, PIXELS * image.height];
    const canvas = el("canvas", { width, height });
    canvas.getContext("2d").drawImage(image, 0, 0, width, height);
    return await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  } finally {
    URL.revokeObjectURL(url);
  }
}

/** @type {(blob: Blob, name: string) => void} */
function download(blob, name) {
  const url = URL.createObjectURL(blob);
  el("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

// Adds the buttons that save what the stage shows. nameOf() is the file's name without its ending.
/** @type {(place: HTMLElement, stage: { root: SVGSVGElement }, nameOf: () => string) => void} */
export function addSaveButtons(place, stage, nameOf) {
  /** @type {(kind: "svg" | "png") => Promise<void>} */
  const save = async (kind) => {
    const name = `${nameOf()}.${kind}`; // now: the scene may play on
    const text = pictureOf(stage.root);
    download(kind === "png" ? await pngOf(text) : new Blob([text], { type: "image/svg+xml" }), name);
  };
  /** @type {(kind: "svg" | "png") => HTMLElement} */
  const button = (kind) =>
    el("button", { type: "button", id: `save-${kind}`, onclick: () => save(kind) }, `Save ${kind.toUpperCase()}`);
  place.append(el("div", { id: "save", role: "group", "aria-label": "Save the scene" }, button("svg"), button("png")));
}
