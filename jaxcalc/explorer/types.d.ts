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
/** The drop in loss that a step really brings, by stage, and what no stage has got of it. */
type Credit = Account & { drop: number; remainder: number };
type PlaceOnStep = { t: number; loss: number };
type Piece = { from: PlaceOnStep; to: PlaceOnStep; nats: Record<string, number>; missed: number };
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

/** What the page keeps of the time before an own step. */
type HistoryEntry = { params: Params; state: OptimizerState; [what: string]: unknown };
/** A problem of the table: its cell, its prompt and its right answer as token ids. */
type Problem = { cell: number; prompt: number[]; answer: number[] };

/** What the page knows of a task. */
type TaskData = {
  vocabulary: string[];
  operations: string[];
  max_number: number;
  output: "words" | "digits" | "digits-reversed";
  prompt_length: number;
  answer_length: number;
};
/** A problem, and the words with which its answer begins; `answer` is null if no number is right. */
type Question = { a: number; operation: string; b: number; answer: number | null; tokens: string[]; begun: string[] };

/** What page.py packs into the page: a run's snapshots, its curve and its task. */
type PageData = {
  about: string;
  made: string;
  prompt: string;
  adam_betas: [number, number];
  task: TaskData;
  leaves: [string, number[]][];
  snapshots: { step: number; weights: string; table: string | null }[];
  curve: {
    loss: [number, number][];
    watched: number;
    checks: { step: number; by_operation: Record<string, number> }[];
  };
  membership: string | null;
  live: LiveData;
};
/** A step that the user has taken. */
type TakenStep = {
  kind: string;
  rate: number;
  target: number;
  loss: number;
  blame: Account;
  credit: (Account & { remainder: number }) | null;
  taken: number;
  actual: number;
  before: number;
  after: number;
};
/** The state that all views show, as main.mjs keeps it: the moment, and what the user has chosen. */
interface App extends Omit<Moment, "update" | "next" | "blame"> {
  data: PageData;
  tokenizer: import("./tokenizer.mjs").Tokenizer;
  words: string[];
  parsed: Question;
  snapshot: number;
  tour: number | null;
  lesson: { before: Moment & { rate: number }; after: Moment; taken: number } | null;
  moment: Moment & { rate: number };
  verdicts: Uint8Array;
  membership: Uint8Array;
  kind: "sgd" | "adam";
  rate: number;
  weight: { name: string; index: number };
  pending: { update: Params; state: OptimizerState; blame: Account; losses: [number, number][]; actual: number };
  last: TakenStep | null;
  stepped: number;
  scores(): Float64Array;
  streams(): [string, Leaf][];
  answer(question?: Question, params?: Params): { words: string[]; p: number };
  paramsOf(snapshot: number): Promise<Params>;
  rightWords(question: Question): string[] | null;
  membershipOf(question: Question): string | null;
  setPrompt(text: string): void;
  setTarget(id: number): void;
  setSnapshot(index: number): Promise<void>;
  setOptimizer(kind: string, rate: number | null): void;
  teach(times: number): Promise<unknown>;
  undo(): void;
  reset(): void;
}
/** A part of the window. */
type Box = { left: number; top: number; right: number; bottom: number };
/** A stop of the tour; `says` gives its sentences, and null for one that does not apply. */
type TourStop = {
  id: string;
  title: string;
  scene: string;
  at: string[];
  says: (seen: TourFacts) => (string | null)[];
};
type TourArc = { stage: string; head: number; to: number; from: number; share: number };
/** The numbers of the tour. */
type TourFacts = {
  weights: number;
  steps: number;
  trained: number;
  lessons: number;
  question: string;
  first: string;
  answer: string;
  right: string | null;
  most: number;
  tokens: { id: number; word: string }[];
  vocabulary: number;
  padding: number;
  width: number;
  layers: number;
  heads: number;
  last: string;
  early: { word: string; p: number };
  looks: { name: string; share: number; most: { head: number; block: number; share: number } };
  likeliest: { word: string; p: number };
  target: { word: string; p: number; kind: "right" | "chosen" | "likeliest" };
  loss: number;
  error: number;
  boxes: { name: string; share: number }[];
  total: number;
  moved: { name: string; value: number; gradient: number; step: number; next: number };
  rate: number;
  kind: "sgd" | "adam";
};
/** Makes its part of the page once, and returns a function that fills it anew. */
type View = (app: App) => () => void;

/** An axis of a chart: its ends, and its ticks as [value, text]. */
type Axis = { from: number; to: number; log?: boolean; ticks: [number, string][] };
/** A line of a chart. */
type Line = { points: [number, number][]; class: string };
/** A place on an axis, in the units of the drawing. */
type Place = (value: number) => number;
type ChartOptions = {
  width?: number;
  height?: number;
  marks?: (atX: Place, atY: Place) => any[];
  onclick?: (distance: Place) => void;
};
/** A grid of cells on a canvas. A click or Enter asks, an arrow key only moves. */
type GridOptions = {
  rows: number;
  columns: number;
  size: number;
  label: string;
  colour: (row: number, column: number) => string | null;
  chosen: () => [number, number] | null;
  onmove?: (row: number, column: number) => void;
  onpick: (row: number, column: number, asks: boolean) => void;
};

/** A problem of the small table, encoded: the question, the answer and its end. `held`: never trained on. */
type Lesson = { a: number; operation: string; b: number; tokens: number[]; held: boolean };
/** What the user chooses for a training. */
type LiveSettings = {
  operations: string[];
  optimizer: string;
  rate: number;
  batch: number;
  seed: number;
  share: number;
};
type LiveModel = { positions: number; width: number; heads: number; hidden: number; blocks: number };
/** What live.py says of a training in the page. */
type LiveData = {
  task: TaskData;
  model: LiveModel;
  decays: Record<string, number>;
  rates: Record<string, number>;
  steps: number;
  settings: Omit<LiveSettings, "rate">;
};
/** What an optimizer of a training remembers: its count and two running means. */
type Memory = { count: number; mu: Params; nu: Params };
type TrainingOptimizer = {
  init: (params: Params) => Memory;
  update: (grads: Params, memory: Memory, params: Params) => { update: Params; state: Memory };
};
/** Where a training is. */
type TrainingRun = { params: Params; memory: Memory | null; step: number };
/** What one step of it measured. */
type TrainingPoint = { step: number; loss: number; shares: number[] };
type TrainingReport = { run: TrainingRun; points: TrainingPoint[]; verdicts: Uint8Array | null };
/** Everything that follows from the settings. */
type Course = { lessons: Lesson[]; training: Lesson[]; optimizer: TrainingOptimizer; start: () => TrainingRun };
type Row = Float64Array;
/** What the layers of a batch keep for the way back. */
type NormMade = { x: Row; y: Row; factors: Row };
type MlpMade = { normed: NormMade; hidden: Row; y: Row };
type MixSizes = { n: number; length: number; from: number; heads: number; k: number };
type AttentionMade = {
  normed: NormMade;
  asking: Row;
  query: NormMade;
  key: NormMade;
  value: Row;
  shares: Row;
  mixed: Row;
  y: Row;
  sizes: MixSizes;
};
type LayersMade = { blocks: { attended: AttentionMade; fed: MlpMade }[]; x: Row; normed: NormMade };
/** One array of weights at one step, as an optimizer sees it; `pull` is its weight decay. */
type LeafStep = {
  shape: number[];
  g: Row;
  mu: Row;
  nu: Row;
  pull: Row | null;
  rate: number;
  t: number;
  inputs: number;
};
/** A part of the tab: made once, drawn anew after each change. */
type LivePart = { node: HTMLElement; draw: () => void };
type Watched = { a: number; operation: string; b: number };

// As with an index, nobody checks that an array has a last element, or that the page has an element of this id.
interface Array<T> {
  at(index: -1): T;
}
interface Document {
  getElementById(id: string): any;
}
