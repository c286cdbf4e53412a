// Where everything stands on the stage: pure geometry, in pixels. Level 0 is the lowest, the embeddings; y grows downwards.

const BOX_HEIGHT = 24, // the height of an attention, embedding or output box
  BAR_ROW = 24, // of a bar of the output
  SUMMARY_HEIGHT = 40,
  LEAST_HEIGHT = 96, // of a block
  TITLE = 12, // of a level, above its boxes on a narrow stage
  SHARE_OF_ATTENTION = 0.66;

// names: the levels from the bottom up; nColumns: the tokens; nBars: the words shown at the top.
/** @type {(stage: { width: number, height: number, names: string[], nColumns: number, nBars: number }) => Layout} */
export function layoutOf({ width, height, names, nColumns, nBars }) {
  const isWide = width >= 620;
  const left = isWide ? 104 : 0;
  const right = isWide ? 200 : Math.max(54, Math.min(110, width - nColumns * 52));
  const pitch = (width - left - right) / nColumns;
  const labels = isWide ? 22 : 34; // on a narrow stage the words stand in two rows
  const top = 26 + nBars * BAR_ROW + 2;
  const nBlocks = (names.length - 2) / 2;
  const title = isWide ? 0 : TITLE;
  const end = BOX_HEIGHT + 16 + title;
  const ends = 2 * end + labels + SUMMARY_HEIGHT + 12;
  const block = Math.max((height - top - ends) / nBlocks, LEAST_HEIGHT + 2 * title);
  /** @type {(name: string) => number} */
  const heightOf = (name) => {
    if (name.endsWith("attention")) return block * SHARE_OF_ATTENTION;
    return name.endsWith("mlp") ? block * (1 - SHARE_OF_ATTENTION) : end;
  };
  let y = top + nBlocks * block + 2 * end;
  const bottom = y;
  const bands = names.map((name) => {
    const band = { name, bottom: y, top: y - heightOf(name) };
    y = band.top;
    const boxHeight = name.endsWith("mlp") ? Math.max(BOX_HEIGHT, heightOf(name) - 18 - title) : BOX_HEIGHT;
    return { ...band, box: { top: band.top + 6 + title, height: boxHeight } };
  });
  return {
    width,
    height: bottom + labels + SUMMARY_HEIGHT + 12,
    isWide,
    left,
    right,
    pitch,
    bands,
    bottom,
    boxWidth: Math.min(pitch - 6, 72),
    x: (column) => left + (column + 0.5) * pitch,
    bars: barsLayout(width, isWide),
    labelY: (column) => bottom + 16 + (isWide || column % 2 ? 0 : 13),
    summary: { top: bottom + labels + 8, height: SUMMARY_HEIGHT },
  };
}

/** @type {(width: number, isWide: boolean) => Bars} */
function barsLayout(width, isWide) {
  const left = isWide ? 104 : 82,
    end = isWide ? 200 : 64;
  return {
    title: isWide ? left : 4,
    left,
    width: width - left - end,
    end: width,
    y: (row) => 26 + row * BAR_ROW,
    height: 14,
  };
}

// The height of a wave that has climbed so many levels.
/** @type {(layout: Layout, climbed: number) => number} */
export function heightAt({ bands }, climbed) {
  const level = Math.min(Math.floor(climbed), bands.length - 1);
  const { top, bottom } = bands[level];
  return bottom + Math.min(climbed - level, 1) * (top - bottom);
}

// An arc of attention leaves its column at the bottom of the band and arrives at the box at its top. Its y is linear in
// s, from 0 to 1, so a wave at one height meets every arc at the same s. A look at oneself bulges to the right.
/**
 * @param {Layout} layout
 * @param {number} level
 * @param {number} from
 * @param {number} to
 * @param {number} head
 * @param {number} heads
 */
export function arcOf(layout, level, from, to, head, heads) {
  const { bottom, box } = layout.bands[level];
  const top = box.top + box.height;
  const shift = (head - (heads - 1) / 2) * Math.min(5, layout.pitch / 12);
  const x0 = layout.x(from) + shift,
    x1 = layout.x(to) + shift;
  const bulge = from === to ? layout.pitch * 0.3 : 0;
  const y = (/** @type {number} */ s) => bottom + s * (top - bottom);
  const path = `M${x0} ${y(0)}C${x0 + bulge} ${y(1 / 3)} ${x1 + bulge} ${y(2 / 3)} ${x1} ${y(1)}`;
  const x = (/** @type {number} */ s) => x0 + (x1 - x0) * s * s * (3 - 2 * s) + bulge * 3 * s * (1 - s);
  return { path, x, top, bottom };
}
