// Long computations, in a worker: the page never waits for them. The worker runs the same script as the page.

import { InputError } from "./tokenizer.mjs";

// What a worker can do: name → async function* (input), which yields its progress, or nothing where it can only be stopped,
// and returns its result.
/** @type {Record<string, Task>} */
export const TASKS = {};

// In the page: run("name", input, onProgress) → the result. A new run of a task stops the one before it. Where no
// worker can start, the page runs the tasks itself, between two frames, and `isSlow` is true.
export class Engine {
  /** @param {string} source */
  constructor(source) {
    /** @type {Map<number, any>} */
    this.runs = new Map();
    this.last = 0;
    this.isSlow = false;
    /** @type {any} */
    this.worker = null;
    /** @type {any} */
    this.answer = null;
    try {
      // A page on disk and a sandboxed frame may start no module worker, so the module becomes a function.
      const text = `(async () => {${source}\n})()`;
      this.worker = new Worker(URL.createObjectURL(new Blob([text], { type: "text/javascript" })));
      this.worker.onmessage = (/** @type {MessageEvent} */ { data }) => this.#receive(data);
      this.worker.onerror = () => this.#goOnWithoutWorker();
    } catch {
      this.#goOnWithoutWorker();
    }
  }

  /** @type {(name: string, input: any, onProgress?: (progress: any) => void) => Promise<any>} */
  run(name, input, onProgress) {
    const id = ++this.last;
    return new Promise((resolve, reject) => {
      this.runs.set(id, { resolve, reject, onProgress, name, input });
      this.post({ id, name, input });
    });
  }

  /** @param {{id: number, name: string, input: any}} message */
  post(message) {
    if (this.isSlow) this.answer(message);
    else this.worker.postMessage(message);
  }

  /** @param {any} message */
  #receive({ id, progress, result, error, refused, stopped }) {
    const run = this.runs.get(id);
    if (progress !== undefined) return run.onProgress?.(progress);
    this.runs.delete(id);
    if (error !== undefined) run.reject(refused ? new InputError(error) : new Error(error));
    else run.resolve(stopped ? null : result); // null: stopped by a newer run
  }

  #goOnWithoutWorker() {
    if (this.isSlow) return;
    this.isSlow = true;
    this.answer = answering((data) => this.#receive(data));
    for (const [id, { name, input }] of this.runs) this.answer({ id, name, input });
  }
}

// In the worker: answers the page's messages.
export function serve() {
  const answer = answering((message) => postMessage(message));
  globalThis.onmessage = ({ data }) => answer(data);
}

// ({id, name, input}) → posts the progress and the result of a task. Between two yields it looks for newer runs.
/** @param {(message: any) => void} post */
function answering(post) {
  /** @type {Record<string, number>} */
  const newest = {};
  return async (/** @type {{id: number, name: string, input: any}} */ { id, name, input }) => {
    newest[name] = id;
    let rested = performance.now();
    try {
      const steps = TASKS[name](input);
      for (;;) {
        const { done, value } = await steps.next();
        if (done) return post({ id, result: value });
        if (value !== undefined) post({ id, progress: value });
        if (performance.now() - rested < 20) continue;
        await new Promise((resume) => setTimeout(resume));
        rested = performance.now();
        if (newest[name] !== id) return post({ id, stopped: true });
      }
    } catch (error) {
      const message = error instanceof Error ? error.message : String(error);
      post({ id, error: message, refused: error instanceof InputError });
    }
  };
}
