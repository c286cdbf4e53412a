// The types of the page's values, for the checks of tests/explorer: JSDoc in the modules names them.

/** An array: its sizes, and its numbers in row-major order. */
type Leaf = { shape: number[]; data: Float64Array };

/** The weights of a model, or anything of the same structure: gradients, a step, moments. */
type Params = { embed: EmbedParams; blocks: BlockParams[]; output: OutputParams };
type EmbedParams = { token: Leaf; position: Leaf };
type BlockParams = { attention: AttentionParams; mlp: MlpParams };
type AttentionParams = { norm: Leaf; query: Leaf; key: Leaf; value: Leaf; out: Leaf };
type MlpParams = { norm: Leaf; up: Leaf; down: Leaf };
type OutputParams = { norm: Leaf; unembed: Leaf };

/** What each stage computes on the way to the scores. */
type Activations = {
  embed: { residual: Leaf };
  blocks: { attention: AttentionActivations; mlp: MlpActivations }[];
  output: OutputActivations;
};
type AttentionActivations = Record<
  "normed" | "asked" | "offered" | "query" | "key" | "value" | "pattern" | "mixed" | "out" | "residual",
  Leaf
>;
type MlpActivations = Record<"normed" | "hidden" | "out" | "residual", Leaf>;
type OutputActivations = { normed: Leaf; logits: Leaf };

/** A stage's path to its weights; null for the loss, which has none. */
type Path = (string | number)[] | null;
/** Incoming message → [gradients of the stage's weights, outgoing message]; the embeddings send none. */
type Vjp = (message: Leaf) => [any, Leaf | null];
type NetworkStage = { name: string; path: Path; apply: (params: any, input: any) => [Leaf, Vjp] };
/** A stage on the way forward. */
type Passed = { stage: NetworkStage; input: any; output: Leaf; vjp: Vjp };
/** A stage on the way back: its messages and its gradients. */
type Walked = {
  name: string;
  path: Path;
  input: any;
  output: Leaf;
  messageIn: Leaf;
  messageOut: Leaf | null;
  grads: any;
};

/** Nats by stage, and their sum. */
type Account = { nats: Record<string, number>; total: number };
/** What an optimizer remembers: SGD nothing, Adam its count and both running means. */
type OptimizerState = null | { count: number; mu: Params; nu: Params };
type Optimizer = {
  init: (params: Params) => OptimizerState;
  update: (grads: Params, state: any) => { update: Params; state: OptimizerState };
};

/** One question at one set of weights, with all that the page shows of it. */
type Moment = {
  params: Params;
  tokens: number[];
  target: number;
  logits: Leaf;
  activations: Activations;
  probabilities: number[];
  loss: number;
  walked: Walked[];
  grads: Params;
  update: Params;
  next: OptimizerState;
  blame: Account;
};

/** A long computation in the worker: yields its progress, returns its result. */
type Task = (input: any) => AsyncGenerator<any, any, void>;

// As with an index, nobody checks that an array has a last element, or that the page has an element of this id.
interface Array<T> {
  at(index: -1): T;
}
interface Document {
  getElementById(id: string): any;
}
