// Random numbers from a seed, so that the same settings train the same model in every browser.

// The generator is mulberry32: 32 bits of state, and each call returns a number from 0 up to but not including 1.
// Streams of one seed do not overlap in practice: the state starts at a hash of both.
/** @type {(seed: number, stream: number) => () => number} */
export function randomOf(seed, stream) {
  let state = mixedBits(mixedBits(seed) + stream);
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let bits = Math.imul(state ^ (state >>> 15), 1 | state);
    bits = (bits + Math.imul(bits ^ (bits >>> 7), 61 | bits)) ^ bits;
    return ((bits ^ (bits >>> 14)) >>> 0) / 2 ** 32;
  };
}

// The last steps of MurmurHash3: neighbouring numbers become unlike ones.
/** @type {(number: number) => number} */
function mixedBits(number) {
  let bits = number | 0;
  bits = Math.imul(bits ^ (bits >>> 16), 0x85ebca6b);
  bits = Math.imul(bits ^ (bits >>> 13), 0xc2b2ae35);
  return bits ^ (bits >>> 16);
}

// One number of the standard normal distribution (Box and Muller 1958).
/** @type {(random: () => number) => number} */
export const normalOf = (random) => Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());

// The items in a random order (Fisher and Yates).
/** @type {<T>(items: Iterable<T>, random: () => number) => T[]} */
export function shuffled(items, random) {
  const order = Array.from(items);
  for (let i = order.length - 1; i > 0; i--) {
    const j = Math.floor(random() * (i + 1));
    [order[i], order[j]] = [order[j], order[i]];
  }
  return order;
}
