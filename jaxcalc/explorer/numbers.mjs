// How the page writes numbers, and which of many it shows.

// A share as a percentage: 0 and 100 % are exact, never rounded.
/** @type {(share: number) => string} */
export function percent(share) {
  if (share === 0 || share === 1) return `${share * 100}\u00a0%`;
  return share < 1e-4 ? "<0.01\u00a0%" : `${Math.min(share * 100, 99.99).toFixed(2)}\u00a0%`;
}

// With minus signs, at which no line breaks, in place of hyphens.
/** @type {(value: number, digits?: number) => string} */
export function significant(value, digits = 4) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  const isPlain = size >= 1e-3 && size < 1e5;
  const text = isPlain
    ? String(Number(size.toPrecision(digits)))
    : size
        .toExponential(digits - 1)
        .replace("e+", "e")
        .replace("e-", "e−");
  return value < 0 ? `−${text}` : text;
}

// The indices of the n largest sizes, the largest first.
/** @type {(sizes: number[], n?: number) => number[]} */
export const largest = (sizes, n = 8) =>
  Array.from(sizes.keys())
    .sort((a, b) => sizes[b] - sizes[a])
    .slice(0, n);
