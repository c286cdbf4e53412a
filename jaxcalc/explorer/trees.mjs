// Trees of arrays, like trees.py: nested objects and lists whose leaves are {shape, data}.

export function array(shape, data = new Float64Array(shape.reduce((n, size) => n * size, 1))) {
  return { shape, data };
}

const isLeaf = (node) => node.data !== undefined;

// Applies a function to the corresponding leaves of one or more trees of the same structure.
export function treeMap(f, tree, ...rest) {
  if (isLeaf(tree)) return f(tree, ...rest);
  if (Array.isArray(tree)) return tree.map((node, i) => treeMap(f, node, ...rest.map((other) => other[i])));
  const entries = Object.keys(tree).map((key) => [key, treeMap(f, tree[key], ...rest.map((other) => other[key]))]);
  return Object.fromEntries(entries);
}

// Every leaf by its dotted path, such as "blocks.0.attention.query".
export function namedLeaves(tree, path = "") {
  if (isLeaf(tree)) return { [path]: tree };
  return Object.assign({}, ...Object.keys(tree).map((key) => namedLeaves(tree[key], path ? `${path}.${key}` : key)));
}

// The inverse of namedLeaves.
export function fromLeaves(leaves) {
  const tree = {};
  for (const [name, leaf] of Object.entries(leaves)) {
    const keys = name.split(".");
    let node = tree;
    keys.slice(0, -1).forEach((key, i) => (node = node[key] ??= /^\d+$/.test(keys[i + 1]) ? [] : {}));
    node[keys.at(-1)] = leaf;
  }
  return tree;
}

// An elementwise function of one to three arrays of one shape.
export const elementwise =
  (f) =>
  ({ shape, data: x }, { data: y } = {}, { data: z } = {}) => {
    const result = array(shape),
      to = result.data;
    if (!y) for (let i = 0; i < x.length; i++) to[i] = f(x[i]);
    else if (!z) for (let i = 0; i < x.length; i++) to[i] = f(x[i], y[i]);
    else for (let i = 0; i < x.length; i++) to[i] = f(x[i], y[i], z[i]);
    return result;
  };

export const add = elementwise((a, b) => a + b);

export const zerosLike = (tree) => treeMap((leaf) => array(leaf.shape), tree);

// ⟨a, b⟩ over all leaves.
export function inner(a, b) {
  let sum = 0;
  treeMap(
    ({ data: x }, { data: y }) => {
      for (let i = 0; i < x.length; i++) sum += x[i] * y[i];
    },
    a,
    b,
  );
  return sum;
}

export const norm = (tree) => Math.sqrt(inner(tree, tree));

// The norm of each row of an array [T, D].
export const rowNorms = ({ shape: [n, d], data }) =>
  Array.from({ length: n }, (_, t) => Math.hypot(...data.subarray(t * d, (t + 1) * d)));

// [3, 1, 5]: the place of an element in an array, from its index in row-major order.
export const placeOf = (shape, index) =>
  shape.reduceRight(([place, rest], size) => [[rest % size, ...place], Math.floor(rest / size)], [[], index])[0];
