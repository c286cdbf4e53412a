// Matrices in row-major Float64Arrays, written for speed.

// x · y, with x [n, k] and y [k, m]. Four terms of each sum at a time keep the processor busy.
export function times(x, y, n, k, m) {
  const product = new Float64Array(n * m);
  for (let i = 0; i < n; i++) {
    const to = i * m;
    let j = 0;
    for (; j + 3 < k; j += 4) {
      const at = i * k + j;
      const a = x[at],
        b = x[at + 1],
        c = x[at + 2],
        d = x[at + 3];
      if (a === 0 && b === 0 && c === 0 && d === 0) continue;
      const from = j * m;
      for (let col = 0; col < m; col++) {
        const e = from + col;
        product[to + col] += a * y[e] + b * y[e + m] + c * y[e + 2 * m] + d * y[e + 3 * m];
      }
    }
    for (; j < k; j++) {
      const a = x[i * k + j],
        from = j * m;
      for (let col = 0; col < m; col++) product[to + col] += a * y[from + col];
    }
  }
  return product;
}

// The transpose of x [n, m].
export function transposed(x, n, m) {
  const result = new Float64Array(n * m);
  for (let i = 0; i < n; i++) for (let j = 0; j < m; j++) result[j * n + i] = x[i * m + j];
  return result;
}
