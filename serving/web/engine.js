// Answers from a model that runs in this page: see the engine of serve.py, in whose place it stands.
// Nothing is sent anywhere; what is fetched lies beside this file.

import { strangenessBy } from "./known.js";
import { loadPhoto, pixelsAreTrue } from "./photo.js";
import { toInput } from "./resize.js";
import { Trouble } from "./trouble.js";

const TOP = 5; // classes of an answer

const beside = (name) => new URL(name, import.meta.url);

// digest: of what the file should hold, so that a browser takes no older one that it kept.
async function fetched(name, digest = "") {
  const options = digest ? {} : { cache: "no-cache" };
  const answer = await fetch(beside(`${name}?${digest}`), options).catch(() => null);
  if (!answer?.ok) throw new Trouble("other", `${name} cannot be had: was the whole folder copied?`);
  return answer;
}

let opened; // the model, once it was asked for
const open = () => (opened ??= start());

async function start() {
  if (!pixelsAreTrue()) {
    const reason = "this browser garbles the pixels that a page reads: allow this site to read canvases";
    throw new Trouble("other", reason);
  }
  const facts = await (await fetched("facts.json")).json();
  const runtime = import(beside(`runtime/${facts.runtime}`));
  const [ort, model] = await Promise.all([runtime, fetched(facts.model, facts.digest)]);
  ort.env.wasm.numThreads = 1; // more would need headers that static hosts do not send
  ort.env.wasm.wasmPaths = { wasm: beside("runtime/ort-wasm-simd-threaded.wasm").href };
  const session = await ort.InferenceSession.create(await model.arrayBuffer(), { executionProviders: ["wasm"] });
  const strangeness = facts.known.features ? strangenessBy(facts.known) : null;
  return { ort, facts, session, strangeness };
}

let before = Promise.resolve(); // one photo at a time: a large one takes hundreds of megabytes

function predict(file) {
  const answer = before.then(() => answerTo(file));
  before = answer.catch(() => {});
  return answer;
}

async function answerTo(file) {
  const { ort, facts, session, strangeness } = await open();
  const { preprocess, classes, answers } = facts;
  const input = toInput(await loadPhoto(file, preprocess), preprocess);
  const size = preprocess.img_size;
  const images = new ort.Tensor("float32", input, [1, 3, size, size]);
  const { logits, features } = await session.run({ images });
  const probabilities = probable(Array.from(logits.data), answers);
  const ranked = probabilities.map((probability, index) => ({ class: classes[index], index, probability }));
  const predictions = ranked.sort((a, b) => b.probability - a.probability).slice(0, TOP);
  const record = { image: file.name ?? null, predictions };
  if (features && strangeness?.(features.data) <= facts.unknown) record.unknown = true;
  return record;
}

/** Softmax, or of classes that answer each by itself the sigmoid. */
export function probable(logits, answers) {
  if (answers === "sigmoid") return logits.map((value) => 1 / (1 + Math.exp(-value)));
  const most = Math.max(...logits);
  const powers = logits.map((value) => Math.exp(value - most));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((value) => value / sum);
}

async function models() {
  const facts = await (await fetched("facts.json")).json();
  open().catch(() => {}); // it loads while the visitor looks for a photo; a photo tells what failed
  const { name, title, classes, answers, accuracy } = facts;
  return [{ name, title, classes, answers, accuracy, explains: false }];
}

export const engine = { place: "here", models, predict };
