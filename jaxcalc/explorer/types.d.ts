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

/** What the user changes inside the network: heads off, shares of attention held, tokens swapped by position. */
type Edits = { heads: { block: number; head: number }[]; shares: HeldShare[]; tokens: Record<number, number> };
/** The share of its attention that position `to` must give to position `from`. */
type HeldShare = { block: number; head: number; to: number; from: number; share: number };
type Place4 = Omit<HeldShare, "share">;
/** (head, to) → what is held of a row of attention, by position; nothing stands where it is free. */
type Held = (head: number, to: number) => number[];

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
/** Incoming message → [gradients of the stage's weights, outgoing message, messages inside]; the embeddings send none. */
type Vjp = (message: Leaf) => [any, Leaf | null, Record<string, Leaf>?];
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
  inside: Record<string, Leaf>;
  vjp: Vjp;
};

/** Nats by stage, and their sum. */
type Account = { nats: Record<string, number>; total: number };
/** The drop in loss that a step really brings, by stage, and what no stage has got of it. */
type Credit = Account & { drop: number; remainder: number };
type PlaceOnStep = { t: number; loss: number };
type Piece = { from: PlaceOnStep; to: PlaceOnStep; nats: Record<string, number>; missed: number };
/** What an optimizer remembers: SGD nothing, Adam its count and both running means. */
type OptimizerState = null | { count: number; mu: Params; nu: Params };
type OptimizerKind = "sgd" | "adam";
type Optimizer = {
  init: (params: Params) => OptimizerState;
  update: (grads: Params, state: any) => { update: Params; state: OptimizerState };
};

/** One question at one set of weights, with all that the page shows of it. */
type Moment = {
  params: Params;
  tokens: number[];
  target: number;
  edits: Edits;
  logits: Leaf;
  activations: Activations;
  probabilities: number[];
  loss: number;
  walked: Walked[];
  grads: Params;
  update: Params;
  next: OptimizerState;
  blame: Account;
  rate?: number;
};

/** A stage that has weights. On the stage it is a level. */
type Level = Walked & { path: (string | number)[] };
/** How one column looks at an earlier one: its share of the attention, and the length of the message that goes back. */
type Arc = { stage: string; head: number; to: number; from: number; share: number; message: number; held: boolean };
/** The weight of a level that a step moves most. */
type Move = { name: string; value: number; gradient: number; step: number; next: number };
/** The numbers that the stage draws of a moment. Lists of levels go up, from the embeddings to the output. */
type Facts = {
  tokens: number[];
  edits: Edits;
  target: number;
  probabilities: number[];
  loss: number;
  /** p − 1 of the right word. */
  error: number;
  names: string[];
  /** What the model would say after each level. */
  says: { word: number; p: number }[];
  arcs: Arc[];
  /** The length of the message above each level, by column. */
  messages: number[][];
  /** Each level's share of the blame. */
  shares: number[];
  /** The same by level and column. */
  cells: number[][];
  /** The length of each level's step. */
  steps: number[];
  moved: Move[];
};

/** The height of a level on the stage, in pixels, and of the boxes in it. */
type Band = { name: string; top: number; bottom: number; box: { top: number; height: number } };
/** Where the bars of the next word stand. */
type Bars = {
  title: number;
  left: number;
  width: number;
  y: (row: number) => number;
  height: number;
  end: number;
};
/** Where everything stands on the stage. */
type Layout = {
  width: number;
  height: number;
  isWide: boolean;
  left: number;
  right: number;
  pitch: number;
  bands: Band[];
  bottom: number;
  boxWidth: number;
  x: (column: number) => number;
  bars: Bars;
  labelY: (column: number) => number;
  summary: { top: number; height: number };
};

type SceneName = "forward" | "surprise" | "backward" | "update" | "again";
type Scene = { name: SceneName; title: string; seconds: number; caption: string };
/** A time within a scene, from 0 to 1. */
type SceneTime = { scene: SceneName; t: number };
/** How far everything is: forward and backward count levels; all else goes from 0 to 1. */
type Frame = { scene: SceneName } & Record<
  "forward" | "backward" | "bars" | "light" | "gap" | "count" | "flash" | "moved",
  number
>;

/** What can be picked on the stage: a column's box, bar or word, a part of the summary (without a column), and an arc. */
type Picked =
  | {
      kind: "node" | "bar" | "cell" | "loss";
      stage: string;
      position: number | null;
      word: number | null;
      show?: string;
    }
  | PickedArc
  | PickedToken;
/** Position `position` looks at position `from`. */
type PickedArc = { kind: "arc"; stage: string; head: number; position: number; from: number; word: number };
type PickedToken = { kind: "token"; stage: string; position: number; word: number };
/** What every part of the stage draws with. */
type Drawing = {
  layout: Layout;
  facts: Facts;
  /** The facts of before the step, where both are compared. */
  past: Facts | null;
  /** The words whose bars are shown. */
  rows: number[];
  words: string[];
  id: string;
  /** In every frame the attribute (or the "text") of the node is what f makes of it. Returns the node. */
  on: (node: SVGElement, attribute: string, f: (frame: Frame) => string | number) => SVGElement;
  /** The attributes of a node that can be picked. */
  pick: (what: Picked, label: string | null) => Record<string, string | number | null>;
};
/** What Stage.show draws of a moment; `before` is the moment to compare it with. */
type Shown = Partial<SceneTime> & { before?: Moment | null };
/** An arc as it is drawn: at rest, lit by the forward and by the backward wave, and what its pulse needs. */
type DrawnArc = Record<"lit" | "back" | "resting", SVGElement | null> & {
  x: (s: number) => number;
  top: number;
  bottom: number;
  level: number;
  share: number;
  /** A part of the widest message. */
  message: number;
  asks: boolean;
};
/** What is picked on the stage or in a table: whose number is wanted. `show` names one of its sums. */
type Asked = {
  kind: "bar" | "arc" | "node" | "cell" | "weight" | "loss";
  stage?: string;
  position?: number | null;
  head?: number;
  from?: number;
  word?: number | null;
  dimension?: number;
  weight?: { name: string; index: number };
  show?: string;
};
/** `to`: what one can go on to from here. */
type Factor = { name: string; value: number; to?: Asked };
/** A product of factors. */
type Term = { label: string; factors: (Factor | null)[]; value: number; to?: Asked };
type SumAbout = {
  name: string;
  title: string;
  text: string;
  unit: string;
  /** The scene in which this is the number that is seen. */
  scene: "forward" | "backward" | "update" | "surprise";
  /** The names of the label and of the factors. */
  columns: string[];
  total: number;
  /** What follows from the total. */
  follows: [label: string, value: number, unit?: "%"][];
  dimension?: { at: number; n: number };
};
/** The terms and the rest add up to the total. */
type Sum = SumAbout & { terms: Term[]; rest: { n: number; value: number } | null };
/** A stage that was walked through, at position t, between its neighbours. */
type StreamPlace = Walked & { t: number; below: Walked; above: Walked; words: string[] };
type Arithmetic = { title: string; sums: Sum[] };
type ArithmeticAbout = { words: string[]; betas?: [number, number] };

/** A long computation in the worker: yields its progress, returns its result. */
type Task = (input: any) => AsyncGenerator<any, any, void>;

/** What the page keeps of the time before an own step. */
type HistoryEntry = Branch & { state: OptimizerState };
/** What the task that answers the whole table reports. */
type TableProgress = { verdicts: Uint8Array; done: number; all: number };
/** The cells that were right and are wrong now, and the other way round; and how many have been asked. */
type TableChanges = { broken: number[]; mended: number[]; asked: number };
/** A problem of the table as a question that could open the page. */
type TableProblem = { text: () => string; right: boolean; membership: string; size: number; isEasy: boolean };
/** A question at a snapshot, which the opening offers. */
type Chip = { text: string; note: string; right: boolean; snapshot: number };
/** What a link asks for; a rate of null is the one that promises half of the loss. */
type Address = {
  question: string;
  snapshot: number;
  target: number;
  edits: Edits;
  optimizer: OptimizerKind;
  rate: number | null;
  scene: number;
  tour: number | null;
};
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
/** A problem, and the words with which its answer begins; `answer` is null if no number is right. Swapped words may be no
 * problem any more. */
type Question = {
  a: number;
  operation: string;
  b: number;
  answer: number | null;
  tokens: string[];
  begun: string[];
  isProblem?: false;
};

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
    watched: "held-out" | "training";
    checks: { step: number; by_operation: Record<string, number> }[];
  };
  ledgers: LedgerData[];
  membership: string | null;
  live: LiveData;
};
type LedgerLesson = { lesson: string; nats: number; visits: number; relation: string };
/** The ledger of a question, at some steps: the surprise, and the credit of each stage up to there. */
type LedgerData = {
  question: string;
  remainder: number;
  steps: number[];
  surprise: number[];
  stages: { name: string; credit: number[] }[];
  taught: LedgerLesson[];
  against: LedgerLesson[];
};
/** What a page without a run carries. */
type LivePageData = { made: string; live: LiveData; snapshots?: undefined };
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
/** A moment, and the rate of its step. */
type RatedMoment = Moment & { rate: number };
/** The step that the optimizer would take; what it would bring is computed when it is first read. */
type PendingStep = {
  update: Params;
  state: OptimizerState;
  blame: Account;
  readonly actual: number;
  /** The losses along it, [t, loss], once they are asked for. */
  losses?: Promise<[number, number][]>;
};
/** What the user has taught: the moments before and after so many steps. */
type Taught = { before: RatedMoment; after: RatedMoment; taken: number };
/** The user's own steps, as the page can go back to them. */
type Branch = {
  params: Params;
  optimizerState: OptimizerState;
  last: TakenStep | null;
  kind: OptimizerKind;
  stepped: number;
  snapshot: number;
  history: import("./teaching.mjs").History;
};
/** What has changed when the page is drawn anew. */
type Change = "question" | "snapshot" | "edits" | "rate" | "lesson" | "credit";
/** What is asked: its words, its tokens, and its right word if there is one. */
type Asking = { parsed: Question; tokens: number[]; target: number | null };
/** What app.mjs knows from the first snapshot and the first question on. */
interface AppState extends Omit<Moment, "update" | "next" | "blame"> {
  snapshot: number;
  prompt: string;
  parsed: Question;
  /** The question without its swapped words. */
  own: Asking;
  moment: RatedMoment;
  rate: number;
  pending: PendingStep;
}
/** The state that all views show: the moment, and what the user has chosen. */
type App = import("./app.mjs").App;
/** A word on the map of embeddings; only a number word has a value. */
type MapWord = { id: number; text: string; value: number | null; kind: "ones" | "teens" | "tens" | "acting" };
/** The centre of the map, and its directions of length 1. */
type MapAxes = { centre: Float64Array; directions: Float64Array[] };
/** How far words are in order on each axis: correlations, and what chance alone brings. */
type MapOrder = { name: string; on: number[]; byChance: number };
/** What the map shows: where each word is, each axis's share of the variance, and what has to fit into the drawing. */
type MapState = { places: [number, number][]; shares: number[]; inView: [number, number][] };
/** A stop of the tour; `says` gives its sentences, and null for one that does not apply. */
type TourStop = {
  id: string;
  title: string;
  scene: SceneName;
  at: string[];
  says: (seen: TourFacts) => (string | null)[];
};
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

type Size = { width: number; height: number };
type Box = { left: number; top: number; right: number; bottom: number };
/** An axis of a chart: its ends, and its ticks as [value, text]. */
type Axis = { from: number; to: number; log?: boolean; ticks: [number, string][] };
/** A line of a chart. */
type Line = { points: [number, number][]; class: string; style?: Record<string, string> };
/** A place on an axis, in the units of the drawing. */
type Place = (value: number) => number;
type ChartOptions = {
  height?: number;
  marks?: (atX: Place, atY: Place) => any[];
  onclick?: (distance: Place) => void;
};
/** Red, green and blue to 255, and alpha to 1. */
type Colour = [number, number, number, number];
/** A grid of cells on a canvas. A click or Enter asks, an arrow key only moves. */
type GridOptions = {
  shape: () => { rows: number; columns: number };
  sizeIn: (width: number) => number;
  label: () => string;
  colour: (row: number, column: number) => Colour | null;
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

// What the console finds.
declare var jaxcalc: Record<string, unknown>;

// As with an index, nobody checks that an array has a last element, or that the page has an element of this id.
interface Array<T> {
  at(index: -1): T;
}
interface Document {
  getElementById(id: string): any;
}
