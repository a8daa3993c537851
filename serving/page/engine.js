// Answers from the server that sent this page. The page knows of it what stands in `engine` alone,
// so that another one, which runs a model in the browser itself, can take its place:
//
//   place                       where photos go: "server", or "here" (they stay on the device)
//   models()                    -> [{name, title, classes, answers, explains, accuracy?}, ...]
//   predict(file, model)        -> {image, predictions: [{class, index, probability}], unsure?, unknown?}
//   explain(file, model, index) -> why, for the class of that index; see serving/explanations.py
//   preview(file)               -> a Blob that every browser shows
//
// The last two may be absent. Whatever goes wrong is thrown as a `Trouble`.
import { Trouble } from "./trouble.js";

const TRIES = 6; // where the server says that it is busy
const KINDS = { 400: "photo", 403: "refused", 408: "gone", 413: "large", 422: "photo", 503: "busy" };

async function ask(path, options) {
  let answer;
  try {
    answer = await fetch(path, { ...options, credentials: "omit" });
  } catch {
    throw new Trouble("gone");
  }
  if (answer.ok) return answer;
  const told = await answer.json().catch(() => ({}));
  throw new Trouble(KINDS[answer.status] ?? "other", told.error ?? String(answer.status));
}

// Posts a photo; a busy server is asked again, later each time.
async function post(path, file, query = {}) {
  const form = new FormData();
  form.append("file", file, file.name ?? "photo.jpg");
  for (let turn = 1; ; turn++) {
    try {
      return await ask(`${path}?${new URLSearchParams(query)}`, { method: "POST", body: form });
    } catch (error) {
      if (error.kind !== "busy" || turn === TRIES) throw error;
      await new Promise((done) => setTimeout(done, 2 ** turn * 100 * (1 + Math.random())));
    }
  }
}

export const engine = {
  place: "server",
  models: async () => (await ask("models")).json(),
  predict: async (file, model) => (await post("predict", file, { model })).json(),
  explain: async (file, model, index) => (await post("explain", file, { model, index })).json(),
  preview: async (file) => (await post("preview", file)).blob(),
};
