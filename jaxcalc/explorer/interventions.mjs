// Interventions: what the user changes inside the network to see what depends on it. They are plain data: heads that are
// off, shares of attention that are held, and tokens that are swapped by position.

/** @type {Edits} */
export const NO_EDITS = { heads: [], shares: [], tokens: {} };

// What is held of one row of attention, by the position that is looked at; the others are free. A head that is off looks
// nowhere, so it writes nothing, is told nothing, and learns nothing.
/** @type {(edits: Edits, block: number, head: number, to: number) => number[]} */
export function heldShares({ heads, shares }, block, head, to) {
  if (heads.some((off) => off.block === block && off.head === head)) return Array(to + 1).fill(0);
  /** @type {number[]} */
  const held = [];
  for (const each of shares)
    if (each.block === block && each.head === head && each.to === to) held[each.from] = each.share;
  return held;
}

/** @type {(edits: Edits, block: number, head: number) => boolean} */
export const isOff = ({ heads }, block, head) => heads.some((off) => off.block === block && off.head === head);

/** @type {(edits: Edits) => boolean} */
export const isEdited = ({ heads, shares, tokens }) =>
  heads.length > 0 || shares.length > 0 || Object.keys(tokens).length > 0;

// Switches a head off, or on again.
/** @type {(edits: Edits, block: number, head: number) => Edits} */
export function toggleHead(edits, block, head) {
  const others = edits.heads.filter((off) => off.block !== block || off.head !== head);
  const heads = others.length < edits.heads.length ? others : [...others, { block, head }];
  heads.sort((a, b) => a.block - b.block || a.head - b.head);
  return { ...edits, heads };
}

// Holds a share. The earlier ones of its row are held on, the newest first, as long as at least one share stays free and
// all add up to 1 at most.
/** @type {(edits: Edits, held: HeldShare) => Edits} */
export function holdShare(edits, held) {
  /** @type {(other: HeldShare) => boolean} */
  const isOfRow = ({ block, head, to }) => block === held.block && head === held.head && to === held.to;
  const row = [held];
  for (const other of edits.shares.filter(isOfRow).toReversed()) {
    const total = row.reduce((sum, { share }) => sum + share, other.share);
    if (other.from !== held.from && total <= 1 && row.length < held.to) row.unshift(other);
  }
  return { ...edits, shares: [...edits.shares.filter((other) => !isOfRow(other)), ...row] };
}

/** @type {(edits: Edits, place: Omit<HeldShare, "share">) => Edits} */
export const letGo = (edits, { block, head, to, from }) => ({
  ...edits,
  shares: edits.shares.filter(
    (held) => held.block !== block || held.head !== head || held.to !== to || held.from !== from,
  ),
});

// Swaps the token at a position; the token that stands there anyway is no change.
/** @type {(edits: Edits, position: number, id: number, own: number) => Edits} */
export function swapToken(edits, position, id, own) {
  const { [position]: _, ...tokens } = edits.tokens;
  return { ...edits, tokens: id === own ? tokens : { ...tokens, [position]: id } };
}

// For another question: its positions are other ones, but a head stays off.
/** @type {(edits: Edits) => Edits} */
export const headsOnly = ({ heads }) => ({ ...NO_EDITS, heads });

/** @type {(tokens: number[], edits: Edits) => number[]} */
export const swapped = (tokens, edits) => tokens.map((id, position) => edits.tokens[position] ?? id);

// What is changed, in words, such as "without head 2 of block 0". `own` are the tokens before any swap.
/** @type {(edits: Edits, own: number[], words: string[]) => string} */
export function describe(edits, own, words) {
  const asked = swapped(own, edits);
  const said = (/** @type {number} */ id) => `“${words[id]}”`;
  return [
    ...edits.heads.map(({ block, head }) => `without head ${head} of block ${block}`),
    ...edits.shares.map(
      ({ block, head, to, from, share }) =>
        `with ${Math.round(100 * share)}\u00a0% of the attention of head ${head} of block ${block} held from ${said(asked[to])} on ${said(asked[from])}`,
    ),
    ...Object.entries(edits.tokens).map(
      ([position, id]) => `with ${said(id)} in place of ${said(own[Number(position)])}`,
    ),
  ].join(", ");
}

// Interventions in an address: off=0.2 (block.head), held=0.1.7.3.0.34 (block.head.to.from.share), swapped=7.four
// (position.word); a comma between two.
/** @type {(edits: Edits, words: string[]) => Record<string, string>} */
export function editFields({ heads, shares, tokens }, words) {
  const fields = {
    off: heads.map(({ block, head }) => `${block}.${head}`),
    held: shares.map(({ block, head, to, from, share }) => `${block}.${head}.${to}.${from}.${share}`),
    swapped: Object.entries(tokens).map(([position, id]) => `${position}.${words[id]}`),
  };
  return Object.fromEntries(
    Object.entries(fields)
      .filter(([, list]) => list.length)
      .map(([name, list]) => [name, list.join()]),
  );
}

// The inverse, for a model with so many heads in each block and a question with so many tokens. refuse(name, why) throws.
/** @type {(given: (name: string) => string | null, refuse: (name: string, why: string) => never, sizes: { heads: number[], length: number, words: string[] }) => Edits} */
export function readEdits(given, refuse, { heads, length, words }) {
  /** @type {(name: string, form: RegExp) => string[][]} */
  const parts = (name, form) =>
    (given(name) ?? "")
      .split(",")
      .filter(Boolean)
      .map((text) => form.exec(text)?.slice(1) ?? refuse(name, "cannot be read"));
  /** @type {(name: string, block: number, head: number) => void} */
  const mustExist = (name, block, head) => {
    if (!(head < heads[block])) refuse(name, "is no head of this model");
  };
  let edits = NO_EDITS;
  for (const [block, head] of parts("off", /^(\d+)\.(\d+)$/).map((found) => found.map(Number))) {
    mustExist("off", block, head);
    if (!isOff(edits, block, head)) edits = toggleHead(edits, block, head);
  }
  for (const found of parts("held", /^(\d+)\.(\d+)\.(\d+)\.(\d+)\.([01](?:\.\d+)?)$/)) {
    const [block, head, to, from, share] = found.map(Number);
    mustExist("held", block, head);
    if (!(to > 0 && to < length && from <= to)) refuse("held", "is no place where this question can look");
    if (share > 1) refuse("held", "is more than all of the attention");
    const before = edits.shares.length;
    edits = holdShare(edits, { block, head, to, from, share });
    if (edits.shares.length === before) refuse("held", "holds more than one row of attention has");
  }
  for (const [position, word] of parts("swapped", /^(\d+)\.(.+)$/)) {
    if (!(Number(position) < length)) refuse("swapped", "is no position of this question");
    if (!words.includes(word)) refuse("swapped", "is not a word of this model");
    edits = swapToken(edits, Number(position), words.indexOf(word), -1);
  }
  return edits;
}
