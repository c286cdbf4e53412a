// The page that trains a small model from nothing, and has no run.

import { begin } from "./begin.mjs";
import { serve } from "./worker.mjs";

if (globalThis.document) globalThis.jaxcalc = { live: begin().live };
else serve();
