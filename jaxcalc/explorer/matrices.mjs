// Matrices in row-major Float64Arrays, written for speed.

// x · y, with x [n, k] and y [k, m]. It sums two rows and four columns at a time, so that each number that is read is
// used several times.
/** @type {(x: Float64Array, y: Float64Array, n: number, k: number, m: number) => Float64Array<ArrayBuffer>} */
export function times(x, y, n, k, m) {
  const product = new Float64Array(n * m);
  for (let col = 0; col + 3 < m; col += 4) {
    for (let row = 0; row + 1 < n; row += 2) twoByFour(x, y, row, col, k, m, product);
  }
  const [rows, columns] = [n - (n % 2), m - (m % 4)];
  for (let row = 0; row < n; row++) {
    for (let col = row < rows ? columns : 0; col < m; col++) {
      let sum = 0;
      for (let j = 0; j < k; j++) sum += x[row * k + j] * y[j * m + col];
      product[row * m + col] = sum;
    }
  }
  return product;
}

/**
 * @param {Float64Array} x
 * @param {Float64Array} y
 * @param {number} row
 * @param {number} col
 * @param {number} k
 * @param {number} m
 * @param {Float64Array} product
 */
function twoByFour(x, y, row, col, k, m, product) {
  let a0 = 0,
    a1 = 0,
    a2 = 0,
    a3 = 0,
    b0 = 0,
    b1 = 0,
    b2 = 0,
    b3 = 0;
  const first = row * k,
    second = first + k;
  for (let j = 0, at = col; j < k; j++, at += m) {
    const a = x[first + j],
      b = x[second + j];
    const y0 = y[at],
      y1 = y[at + 1],
      y2 = y[at + 2],
      y3 = y[at + 3];
    a0 += a * y0;
    a1 += a * y1;
    a2 += a * y2;
    a3 += a * y3;
    b0 += b * y0;
    b1 += b * y1;
    b2 += b * y2;
    b3 += b * y3;
  }
  const to = row * m + col;
  product[to] = a0;
  product[to + 1] = a1;
  product[to + 2] = a2;
  product[to + 3] = a3;
  product[to + m] = b0;
  product[to + m + 1] = b1;
  product[to + m + 2] = b2;
  product[to + m + 3] = b3;
}

// The transpose of x [n, m].
/** @type {(x: Float64Array, n: number, m: number) => Float64Array<ArrayBuffer>} */
export function transposed(x, n, m) {
  const result = new Float64Array(n * m);
  for (let i = 0; i < n; i++) for (let j = 0; j < m; j++) result[j * n + i] = x[i * m + j];
  return result;
}
