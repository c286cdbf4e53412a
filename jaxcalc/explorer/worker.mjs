// Long computations, in a worker: the page never waits for them. The worker runs the same script as the page.

// What a worker can do: name → async function* (input), which yields its progress and returns its result.
export const TASKS = {};

// In the page: run("name", input, onProgress) → the result. A new run of a task stops the one before it. Where no
// worker can start, the page runs the tasks itself, between two frames, and `isSlow` is true.
export class Engine {
  constructor(source) {
    this.runs = new Map();
    this.last = 0;
    this.isSlow = false;
    try {
      // A page on disk and a sandboxed frame may start no module worker, so the module becomes a function.
      const text = `(async () => {${source}\n})()`;
      this.worker = new Worker(URL.createObjectURL(new Blob([text], { type: "text/javascript" })));
      this.worker.onmessage = ({ data }) => this.#receive(data);
      this.worker.onerror = () => this.#goOnWithoutWorker();
    } catch {
      this.#goOnWithoutWorker();
    }
  }

  run(name, input, onProgress) {
    const id = ++this.last;
    return new Promise((resolve, reject) => {
      this.runs.set(id, { resolve, reject, onProgress, name, input });
      this.post({ id, name, input });
    });
  }

  post(message) {
    if (this.isSlow) this.answer(message);
    else this.worker.postMessage(message);
  }

  #receive({ id, progress, result, error, stopped }) {
    const run = this.runs.get(id);
    if (progress !== undefined) return run.onProgress?.(progress);
    this.runs.delete(id);
    if (error !== undefined) run.reject(new Error(error));
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
function answering(post) {
  const newest = {};
  return async ({ id, name, input }) => {
    newest[name] = id;
    try {
      const steps = TASKS[name](input);
      for (;;) {
        const { done, value } = await steps.next();
        if (done) return post({ id, result: value });
        post({ id, progress: value });
        await new Promise((resume) => setTimeout(resume));
        if (newest[name] !== id) return post({ id, stopped: true });
      }
    } catch (error) {
      post({ id, error: String(error.message) });
    }
  };
}
