// What the page carries: a run's snapshots, its curve and its table of problems, packed by page.py.

import { array, fromLeaves } from "./trees.mjs";

const DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;,=>?@^_`{|}~";

// Base 85: five characters are a number of four bytes. The last number may be short; "~" fills it up.
/** @type {(text: string) => Uint8Array<ArrayBuffer>} */
function fromBase85(text) {
  const values = new Uint8Array(128).map((_, code) => DIGITS.indexOf(String.fromCharCode(code)));
  const missing = (5 - (text.length % 5)) % 5;
  const bytes = new DataView(new ArrayBuffer((4 * (text.length + missing)) / 5));
  for (let i = 0; i < text.length; i += 5) {
    let number = 0;
    for (let j = i; j < i + 5; j++) number = 85 * number + (j < text.length ? values[text.charCodeAt(j)] : 84);
    bytes.setUint32((4 * i) / 5, number);
  }
  return new Uint8Array(bytes.buffer, 0, bytes.byteLength - missing);
}

/** @type {(packed: string) => Promise<Uint8Array>} */
export async function unpack(packed) {
  const stream = new Blob([fromBase85(packed)]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// The weights are float32, packed as all their first bytes, then all their second bytes, and so on: this compresses best.
/** @type {(packed: string, leaves: [string, number[]][]) => Promise<Params>} */
export async function unpackWeights(packed, leaves) {
  const planes = await unpack(packed);
  const count = planes.length / 4;
  const bytes = new DataView(new ArrayBuffer(planes.length));
  for (let i = 0; i < count; i++)
    for (let plane = 0; plane < 4; plane++) bytes.setUint8(4 * i + plane, planes[plane * count + i]);
  let next = 0;
  const arrays = leaves.map(([name, shape]) => {
    const leaf = array(shape);
    for (let i = 0; i < leaf.data.length; i++) leaf.data[i] = bytes.getFloat32(4 * next++, true);
    return [name, leaf];
  });
  return fromLeaves(Object.fromEntries(arrays));
}

// A byte of the table: 0 for no problem, else bit 7 for a right answer, and in the other bits 1 + 126 · its probability.
/** @type {(byte: number) => { right: boolean, p: number } | null} */
export const verdict = (byte) => (byte ? { right: byte > 127, p: ((byte & 127) - 1) / 126 } : null);

export const MEMBERSHIP = ["outside", "training", "held out"];
