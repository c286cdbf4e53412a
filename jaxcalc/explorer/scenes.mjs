// The five scenes of a lesson, as pure functions of the time t within a scene, from 0 to 1.

/** @type {Scene[]} */
export const SCENES = [
  {
    name: "forward",
    title: "Forward",
    seconds: 2.2,
    caption: "The question climbs through the network. On the right: the word that the model would say at each stage.",
  },
  {
    name: "surprise",
    title: "Surprise",
    seconds: 1.3,
    caption: "The bar of the right word falls short. The loss is −ln p: the smaller p, the larger the surprise.",
  },
  {
    name: "backward",
    title: "Backward",
    seconds: 2.4,
    caption: "The error goes back the way the answer came. Every box fills with its share of the blame.",
  },
  {
    name: "update",
    title: "Update",
    seconds: 1.2,
    caption:
      "Every weight moves a little against its gradient. On the right: the weight that moves most at each stage.",
  },
  {
    name: "again",
    title: "Again",
    seconds: 1.5,
    caption: "The same question again. Dashed: the bars before the step.",
  },
];

/** @type {(value: number) => number} */
const clamp01 = (value) => Math.min(Math.max(value, 0), 1);
/** @type {(t: number) => number} */
const ease = (t) => t * t * (3 - 2 * t);

// How far everything is: forward and backward count levels; all else goes from 0 to 1.
/** @type {(scene: SceneName, t: number, nLevels: number) => Frame} */
export function frameOf(scene, t, nLevels) {
  const still = { forward: nLevels, backward: 0, bars: 1, light: 1, gap: 0, count: 0, flash: 0, moved: 0 };
  /** @type {(part: number) => { forward: number, bars: number }} */
  const climb = (part) => ({ forward: nLevels * clamp01(part * 1.08), bars: ease(clamp01((part - 0.85) / 0.15)) });
  return {
    ...still,
    ...{
      forward: () => climb(t),
      surprise: () => ({ gap: ease(clamp01(t / 0.5)), count: ease(clamp01((t - 0.3) / 0.6)) }),
      backward: () => ({
        backward: nLevels * clamp01(t * 1.05),
        light: 1 - 0.72 * clamp01(t / 0.12),
        gap: 1,
        count: 1,
      }),
      update: () => ({
        backward: nLevels,
        light: 0.28,
        gap: 1,
        count: 1,
        flash: t,
        moved: ease(clamp01((t - 0.2) / 0.7)),
      }),
      again: () => climb(clamp01(t / 0.85)),
    }[scene](),
    scene,
  };
}

// A box of a level flashes when the step reaches it, and keeps a part of its light.
/** @type {(frame: Frame, level: number, nLevels: number) => number} */
export function flashOf({ flash }, level, nLevels) {
  if (!flash) return 0;
  const since = flash - (0.55 * level) / nLevels;
  return since <= 0 ? 0 : 0.35 + 0.65 * Math.max(0, 1 - since / 0.3);
}

// How full a level's boxes are while the wave goes down.
/** @type {(frame: Frame, level: number, nLevels: number) => number} */
export const filled = ({ backward }, level, nLevels) => ease(clamp01(backward - (nLevels - 1 - level)));

/** @type {(frame: Frame, level: number) => number} */
export const reached = ({ forward }, level) => clamp01((forward - level) * 1.5 - 0.3);
