// The page: photos in (dropped, pasted, chosen, from the camera), cards with answers out.
import { answer, csv, sureness } from "./answers.js";
import { Camera, allowed } from "./camera.js";
import { Card, troubleText } from "./card.js";
import { element } from "./elements.js";
import { engine } from "./engine.js";
import { otherLanguage, percent, say, switchLanguage, translate } from "./words.js";

const AT_ONCE = 3; // photos that are asked about at a time
const NAMED = 12; // classes named in a sentence

const at = (id) => document.getElementById(id);
const cards = [];
const waiting = [];
let models = [];
let asking = 0;
let live = null; // the latest answer to the camera

const model = () => models.find(({ name }) => name === at("model").value) ?? models[0];

// --- photos in ---

function add(files) {
  const added = [...files].map((file) => new Card(file, engine, remove));
  cards.push(...added);
  waiting.push(...added);
  if (added.length === 1) added[0].open = true;
  show();
  work();
}

async function work() {
  while (asking < AT_ONCE && waiting.length && models.length) {
    asking++;
    const card = waiting.shift();
    card.ask(model()).then(() => {
      asking--;
      if (cards.includes(card)) tell(card.summary);
      show();
      work();
    });
  }
}

function remove(card) {
  const place = [...at("gallery").children].indexOf(card.element);
  cards.splice(cards.indexOf(card), 1);
  if (waiting.includes(card)) waiting.splice(waiting.indexOf(card), 1);
  card.close();
  show();
  tell(say("removed", card.name));
  const next = at("gallery").children[Math.min(place, cards.length - 1)];
  (next?.querySelector("[data-does=remove]") ?? at("files")).focus();
}

function drop(event) {
  event.preventDefault();
  at("drop").classList.remove("over");
  take(event.dataTransfer);
}

function take(transfer) {
  const files = [...(transfer?.files ?? [])];
  trouble(files.length ? "" : say(transfer?.types.includes("text/uri-list") ? "link" : "none"));
  if (files.length) add(files);
}

function paste(event) {
  if (event.clipboardData?.files.length) take(event.clipboardData);
}

// --- answers out ---

const ORDERS = {
  new: () => 0,
  sure: (a, b) => b - a,
  unsure: (a, b) => a - b,
};

function show() {
  at("results").hidden = !cards.length;
  at("count").textContent = cards.length === 1 ? say("onephoto") : say("photos", cards.length);
  const order = ORDERS[at("sort").value];
  const key = (card) => (card.record ? sureness(card.record) : -1);
  const sorted = [...cards].reverse().sort((a, b) => order(key(a), key(b)));
  sorted.forEach((card, place) => {
    const there = at("gallery").children[place];
    if (there !== card.element) at("gallery").insertBefore(card.element, there ?? null);
  });
}

function save() {
  const rows = cards.map((card) => ({ name: card.name, record: card.record, error: card.trouble?.message || (card.trouble ? card.trouble.kind : "") }));
  const file = new Blob(["\ufeff", csv(rows)], { type: "text/csv;charset=utf-8" }); // the mark tells Excel that it is UTF-8
  const link = element("a", { href: URL.createObjectURL(file), download: "answers.csv" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

function clear() {
  waiting.length = 0;
  for (const card of cards.splice(0)) card.close();
  show();
  at("files").focus();
}

function tell(text) {
  at("said").textContent = text;
}

function trouble(text) {
  at("trouble").hidden = !text;
  at("trouble").textContent = text;
}

// --- the camera ---

const camera = new Camera(at("video"), async (picture) => {
  try {
    live = await engine.predict(picture, model().name);
    trouble("");
  } catch (error) {
    trouble(troubleText(error));
  }
  if (camera.stream) showLive();
});

function showLive() {
  if (live) at("live-answer").replaceChildren(...answer(live));
}

async function toggleCamera() {
  if (camera.stream) return stopCamera();
  try {
    at("live").hidden = false;
    await camera.start();
    at("camera").setAttribute("aria-expanded", "true");
  } catch (error) {
    stopCamera();
    trouble(say("nocamera", error.message));
  }
}

function stopCamera() {
  camera.stop();
  live = null;
  at("live").hidden = true;
  at("live-answer").replaceChildren();
  at("camera").setAttribute("aria-expanded", "false");
  at("camera").focus();
}

// --- words, and the start ---

function speak() {
  translate();
  const other = otherLanguage();
  Object.assign(at("language"), { textContent: other.name, lang: other.tag });
  document.title = say("title");
  at("place").textContent = say(engine.place);
  for (const card of cards) card.say();
  show();
  showLive();
  about();
}

function about() {
  if (!model()) return;
  const { title, classes, answers, accuracy } = model();
  const names = classes.slice(0, NAMED).join(", ") + (classes.length > NAMED ? " …" : "");
  const told = accuracy ? `, ${say("right", sure(accuracy), say(`${accuracy.on}photos`))}` : "";
  const each = answers === "sigmoid" ? `${say("full")}${say("each")}` : "";
  at("about").textContent = `${title}${told}${say("full")}${say("classes", classes.length, names)}${each}`;
}

// An accuracy with its interval, and of how many photos, where they are known.
function sure({ share, low, high, photos }) {
  const ends = low === undefined || high === undefined ? [] : [say("interval", percent(low), percent(high))];
  if (photos !== undefined) ends.push(photos === 1 ? say("onephoto") : say("photos", photos));
  return percent(share) + (ends.length ? say("aside", ends.join(say("comma"))) : "");
}

function changeModel() {
  about();
  waiting.length = 0;
  waiting.push(...cards);
  work();
}

function listen() {
  const zone = document.body;
  zone.addEventListener("dragover", (event) => {
    event.preventDefault();
    at("drop").classList.add("over");
  });
  zone.addEventListener("dragleave", (event) => event.relatedTarget ?? at("drop").classList.remove("over"));
  zone.addEventListener("drop", drop);
  document.addEventListener("paste", paste);
  for (const id of ["files", "shot"]) {
    at(id).addEventListener("change", () => {
      trouble("");
      add(at(id).files);
      at(id).value = "";
    });
  }
  at("camera").addEventListener("click", toggleCamera);
  at("stop").addEventListener("click", stopCamera);
  at("keep").addEventListener("click", async () => add([await camera.picture()]));
  at("sort").addEventListener("change", show);
  at("csv").addEventListener("click", save);
  at("clear").addEventListener("click", clear);
  at("model").addEventListener("change", changeModel);
  at("language").addEventListener("click", () => {
    switchLanguage();
    speak();
  });
}

async function start() {
  at("camera").hidden = !allowed();
  at("phone").hidden = at("insecure").hidden = allowed();
  listen();
  speak();
  try {
    models = await engine.models();
  } catch (error) {
    trouble(troubleText(error));
    return;
  }
  at("model").replaceChildren(...models.map(({ name }) => element("option", { value: name, textContent: name })));
  at("models").hidden = models.length < 2;
  about();
  work();
}

start();
