// Trees of arrays, like trees.py: nested objects and lists whose leaves are {shape, data}.

/** @type {(shape: number[], data?: Float64Array) => Leaf} */
export function array(shape, data = new Float64Array(shape.reduce((n, size) => n * size, 1))) {
  return { shape, data };
}

/** @type {(node: any) => boolean} */
const isLeaf = (node) => node.data !== undefined;

// Applies a function to the corresponding leaves of one or more trees of the same structure.
/** @type {(f: (...leaves: any[]) => any, tree: any, ...rest: any[]) => any} */
export function treeMap(f, tree, ...rest) {
  if (isLeaf(tree)) return f(tree, ...rest);
  if (Array.isArray(tree)) return tree.map((node, i) => treeMap(f, node, ...rest.map((other) => other[i])));
  const entries = Object.keys(tree).map((key) => [key, treeMap(f, tree[key], ...rest.map((other) => other[key]))]);
  return Object.fromEntries(entries);
}

// Every leaf by its dotted path, such as "blocks.0.attention.query".
/** @type {(tree: any, path?: string) => Record<string, Leaf>} */
export function namedLeaves(tree, path = "") {
  if (isLeaf(tree)) return { [path]: tree };
  return Object.assign({}, ...Object.keys(tree).map((key) => namedLeaves(tree[key], path ? `${path}.${key}` : key)));
}

// The inverse of namedLeaves.
/** @type {(leaves: Record<string, Leaf>) => any} */
export function fromLeaves(leaves) {
  /** @type {any} */
  const tree = {};
  for (const [name, leaf] of Object.entries(leaves)) {
    const keys = name.split(".");
    let node = tree;
    for (const [i, key] of keys.slice(0, -1).entries()) node = node[key] ??= /^\d+$/.test(keys[i + 1]) ? [] : {};
    node[keys.at(-1)] = leaf;
  }
  return tree;
}

// An elementwise function of one to three arrays of one shape.
/** @type {(f: (...values: number[]) => number) => (...arrays: Leaf[]) => Leaf} */
export const elementwise = (f) => (first, second, third) => {
  const result = array(first.shape),
    [to, x, y, z] = [result.data, first.data, second?.data, third?.data];
  if (!y) for (let i = 0; i < x.length; i++) to[i] = f(x[i]);
  else if (!z) for (let i = 0; i < x.length; i++) to[i] = f(x[i], y[i]);
  else for (let i = 0; i < x.length; i++) to[i] = f(x[i], y[i], z[i]);
  return result;
};

export const add = elementwise((a, b) => a + b);

/** @type {<T>(tree: T) => T} */
export const zerosLike = (tree) => treeMap((leaf) => array(leaf.shape), tree);

// ⟨a, b⟩ over all leaves.
/** @type {(a: any, b: any) => number} */
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

/** @type {(tree: any) => number} */
export const norm = (tree) => Math.sqrt(inner(tree, tree));

// The norm of each row of an array [T, D].
/** @type {(array: Leaf) => number[]} */
export const rowNorms = ({ shape: [n, d], data }) =>
  Array.from({ length: n }, (_, t) => Math.hypot(...data.subarray(t * d, (t + 1) * d)));

// [3, 1, 5]: the place of an element in an array, from its index in row-major order.
/** @type {(shape: number[], index: number) => number[]} */
export const placeOf = (shape, index) =>
  shape.reduceRight(
    ([place, rest], size) => /** @type {[number[], number]} */ ([[rest % size, ...place], Math.floor(rest / size)]),
    /** @type {[number[], number]} */ ([[], index]),
  )[0];
