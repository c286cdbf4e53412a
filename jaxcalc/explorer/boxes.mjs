// Boxes on the page.

// The area that two boxes share.
/** @type {(a: Box, b: Box) => number} */
export const overlap = (a, b) =>
  Math.max(0, Math.min(a.right, b.right) - Math.max(a.left, b.left)) *
  Math.max(0, Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top));
