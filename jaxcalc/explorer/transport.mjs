// The transport bar: a clock over the five scenes, with its buttons, its scrubber and the arrow keys.

import { el, svg } from "./dom.mjs";
import { SCENES } from "./scenes.mjs";

const SCENE_STARTS = SCENES.map((_, i) => SCENES.slice(0, i).reduce((total, { seconds }) => total + seconds, 0));
const LESSON_SECONDS = SCENE_STARTS.at(-1) + SCENES.at(-1).seconds;
const SECONDS_PER_KEY = 0.1; // seconds per press of an arrow key
/** @type {Record<string, number>} */
const KEY_WAYS = { ArrowLeft: -1, ArrowRight: 1 };

/** @type {(name: SceneName) => number} */
export const indexOfScene = (name) => SCENES.findIndex((scene) => scene.name === name);

// Signs that do not depend on the fonts of a machine.
/** @type {Record<string, string>} */
const SIGNS = {
  play: "M5 3L17 10L5 17Z",
  pause: "M5 3H8.5V17H5ZM11.5 3H15V17H11.5Z",
  back: "M4 3H6.5V17H4ZM17 3V17L7 10Z",
  step: "M3 5L9 10L3 15ZM11 4H17V16H11Z",
  forward: "M3 3L13 10L3 17ZM13.5 3H16V17H13.5Z",
};
/** @type {(name: string) => SVGElement} */
const sign = (name) =>
  svg("svg", { viewBox: "0 0 20 20", class: "sign", "aria-hidden": "true" }, svg("path", { d: SIGNS[name] }));

// The scene and the time in it, {scene, t}, at so many seconds. The end of a scene belongs to it, not to the next one.
/** @type {(seconds: number) => SceneTime} */
export function sceneAt(seconds) {
  const index = SCENE_STARTS.findLastIndex((start, i) => i === 0 || start < seconds);
  return { scene: SCENES[index].name, t: Math.min((seconds - SCENE_STARTS[index]) / SCENES[index].seconds, 1) };
}

// onframe({scene, t}) is called for each frame. With reduced motion there are only the last frames of the scenes.
export class Transport {
  /**
   * @param {HTMLElement} container
   * @param {(at: SceneTime) => void} onframe
   */
  constructor(container, onframe) {
    this.onframe = onframe;
    this.seconds = 0;
    this.playing = false;
    this.cancel = () => {}; // the frame that is to come
    this.still = matchMedia("(prefers-reduced-motion: reduce)");
    /** @type {(name: string, label: string, onclick: () => void) => HTMLButtonElement} */
    const button = (name, label, onclick) =>
      el("button", { type: "button", id: `transport-${name}`, "aria-label": label, title: label, onclick }, sign(name));
    this.playButton = button("play", "Play", () => (this.playing ? this.pause() : this.play()));
    /** @type {HTMLInputElement} */
    this.scrubber = el("input", {
      type: "range",
      id: "scrubber",
      min: 0,
      max: LESSON_SECONDS,
      step: 0.01,
      value: 0,
      "aria-label": "Time in the lesson",
      oninput: () => this.seek(Number(this.scrubber.value)),
    });
    this.scenes = SCENES.map(
      ({ name, title, seconds }, i) =>
        /** @type {HTMLButtonElement} */ (
          el(
            "button",
            { type: "button", id: `scene-${name}`, style: { "flex-grow": seconds }, onclick: () => this.showEnd(i) },
            el("b", {}, String(i + 1)),
            ` ${title}`,
          )
        ),
    );
    /** @type {HTMLElement} */
    this.caption = el("p", { id: "caption" });
    container.append(
      el(
        "div",
        { class: "buttons" },
        button("back", "One scene back", () => this.showEnd(Math.max(this.index - 1, 0))),
        this.playButton,
        button("step", "Play one scene", () => this.playScene()),
        button("forward", "One scene forward", () => this.showEnd(Math.min(this.index + 1, SCENES.length - 1))),
      ),
      el(
        "div",
        { class: "track-of-scenes" },
        el("div", { class: "scenes", role: "group", "aria-label": "Scenes" }, this.scenes),
        this.scrubber,
      ),
      this.caption,
    );
    document.addEventListener("keydown", (event) => this.#key(event));
  }

  get index() {
    return indexOfScene(sceneAt(this.seconds).scene);
  }

  /** @type {(index: number) => number} */
  endOf(index) {
    return SCENE_STARTS[index] + SCENES[index].seconds;
  }

  /** @type {(seconds: number) => void} */
  seek(seconds) {
    this.pause();
    this.#go(seconds);
  }

  /** @type {(index: number) => void} */
  showEnd(index) {
    this.seek(this.endOf(index));
  }

  // Plays from one time to another, and then calls done.
  /** @type {(from?: number, to?: number, done?: () => void) => void} */
  play(from = this.seconds >= LESSON_SECONDS - 0.01 ? 0 : this.seconds, to = LESSON_SECONDS, done = () => {}) {
    this.pause();
    if (this.still.matches) return this.#playStill(from, to, done);
    this.playing = true;
    this.#label();
    /** @type {number | null} */
    let last = null;
    const tick = (/** @type {number} */ now) => {
      // After a hitch the wave goes on from where it was seen last.
      const seconds = last === null ? from : Math.min(this.seconds + Math.min((now - last) / 1000, 0.05), to);
      last = now;
      this.#go(seconds);
      if (seconds < to) this.#frame(tick);
      else {
        this.pause();
        done();
      }
    };
    this.#frame(tick);
  }

  /** @type {(tick: (now: number) => void) => void} */
  #frame(tick) {
    const request = requestAnimationFrame(tick);
    this.cancel = () => cancelAnimationFrame(request);
  }

  // The scene to its end, or the next scene if this one is at its end.
  playScene() {
    const atEnd = this.seconds >= this.endOf(this.index) - 0.01;
    const index = atEnd ? (this.index + 1) % SCENES.length : this.index;
    this.play(atEnd ? SCENE_STARTS[index] : this.seconds, this.endOf(index));
  }

  pause() {
    this.cancel();
    this.playing = false;
    this.#label();
  }

  /** @type {(from: number, to: number, done: () => void) => void} */
  #playStill(from, to, done) {
    const ends = SCENES.map((_, i) => this.endOf(i)).filter((end) => end > from && end <= to + 0.001);
    this.playing = true;
    this.#label();
    const next = () => {
      this.#go(ends.shift() ?? to);
      if (ends.length) {
        const timer = setTimeout(next, 1600);
        this.cancel = () => clearTimeout(timer);
      } else {
        this.pause();
        done();
      }
    };
    next();
  }

  /** @type {(seconds: number) => void} */
  #go(seconds) {
    this.seconds = Math.min(Math.max(seconds, 0), LESSON_SECONDS);
    this.scrubber.value = String(this.seconds);
    const at = sceneAt(this.seconds);
    const scene = SCENES[this.index];
    if (this.caption.textContent !== scene.caption) {
      this.caption.textContent = scene.caption;
      this.scrubber.setAttribute("aria-valuetext", scene.title);
      for (const button of this.scenes)
        button.setAttribute("aria-pressed", String(button.id === `scene-${scene.name}`));
    }
    this.onframe(at);
  }

  #label() {
    const label = this.playing ? "Pause" : "Play";
    this.playButton.replaceChildren(sign(this.playing ? "pause" : "play"));
    this.playButton.setAttribute("aria-label", label);
    this.playButton.title = label;
  }

  // The arrow keys scrub, with Shift by scenes, wherever no other control needs them.
  /** @type {(event: KeyboardEvent) => void} */
  #key(event) {
    const { target } = event;
    if (!(target instanceof Element)) return;
    if (target.closest("input, select, textarea, canvas, [data-pick], [popover], dialog, #inside")) return;
    const way = KEY_WAYS[event.key];
    if (!way || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    if (event.shiftKey || this.still.matches) this.showEnd(Math.min(Math.max(this.index + way, 0), SCENES.length - 1));
    else this.seek(this.seconds + way * SECONDS_PER_KEY);
  }
}
