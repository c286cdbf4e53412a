// Long computations, in a worker: the page never waits for them. The worker runs the same script as the page.

import { InputError } from "./tokenizer.mjs";

// What a worker can do: name → async function* (input), which yields its progress, or nothing where it can only be stopped,
// and returns its result.
/** @type {Record<string, Task>} */
export const TASKS = {};

// In the page: run("name", input, onProgress) → the result. A new run of a task stops the one before it.
export class Engine {
  /** @param {string} source */
  constructor(source) {
    this.worker = new Worker(URL.createObjectURL(new Blob([source], { type: "text/javascript" })), { type: "module" });
    this.runs = new Map();
    this.last = 0;
    this.worker.onmessage = ({ data: { id, progress, result, error, refused, stopped } }) => {
      const run = this.runs.get(id);
      if (progress !== undefined) return run.onProgress?.(progress);
      this.runs.delete(id);
      if (error !== undefined) run.reject(refused ? new InputError(error) : new Error(error));
      else run.resolve(stopped ? null : result); // null: stopped by a newer run
    };
  }

  /** @type {(name: string, input: any, onProgress?: (progress: any) => void) => Promise<any>} */
  run(name, input, onProgress) {
    const id = ++this.last;
    return new Promise((resolve, reject) => {
      this.runs.set(id, { resolve, reject, onProgress });
      this.worker.postMessage({ id, name, input });
    });
  }
}

// In the worker: answers the page's messages. Between two yields of a task it looks for newer ones.
export function serve() {
  /** @type {Record<string, number>} */
  const newest = {};
  globalThis.onmessage = async ({ data: { id, name, input } }) => {
    newest[name] = id;
    let rested = performance.now();
    try {
      const steps = TASKS[name](input);
      for (;;) {
        const { done, value } = await steps.next();
        if (done) return postMessage({ id, result: value });
        if (value !== undefined) postMessage({ id, progress: value });
        if (performance.now() - rested < 20) continue;
        await new Promise((resume) => setTimeout(resume));
        rested = performance.now();
        if (newest[name] !== id) return postMessage({ id, stopped: true });
      }
    } catch (error) {
      postMessage({
        id,
        error: error instanceof Error ? error.message : String(error),
        refused: error instanceof InputError,
      });
    }
  };
}
