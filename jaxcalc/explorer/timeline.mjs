// The steps of a run as the axis of its charts, with its snapshots.

import { svg } from "./dom.mjs";

// Logarithmic, from step 0 on; a step's place is that of step + 1.
/** @type {(steps: number) => Axis} */
export const stepAxis = (steps) => ({
  from: 1,
  to: steps + 1,
  log: true,
  ticks: [1, 10, 100, 1000, 10000].filter((n) => n <= steps).map((n) => [n + 1, n.toLocaleString("en-US")]),
});

// Ticks at the snapshots and a cursor at the chosen one; a chart ends every mark at its edges. A click chooses the
// nearest snapshot.
/** @type {(app: App) => ChartOptions} */
export function alongSnapshots(app) {
  const { snapshots } = app.data;
  const { step } = snapshots[app.snapshot];
  return {
    marks: (atX, atY) => [
      snapshots.map((s) =>
        svg("line", {
          class: "tick",
          x1: atX(s.step + 1),
          x2: atX(s.step + 1),
          y1: atY(-Infinity) - 3,
          y2: atY(-Infinity) + 3,
        }),
      ),
      svg("line", { class: "cursor", x1: atX(step + 1), x2: atX(step + 1), y1: atY(-Infinity), y2: atY(Infinity) }),
    ],
    onclick: (distance) => {
      const all = snapshots.map((s) => distance(s.step + 1));
      app.setSnapshot(all.indexOf(Math.min(...all)));
    },
  };
}
