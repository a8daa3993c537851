// A photo in the gallery: its picture, its answer, and on request why.
import { answer, verdict } from "./answers.js";
import { element, named } from "./elements.js";
import { explained } from "./why.js";
import { percent, readsReasons, say } from "./words.js";

export class Card {
  #url;

  // engine: see engine.js. removed: called with the card when its user takes it away.
  constructor(file, engine, removed) {
    Object.assign(this, { file, engine, removed, name: file.name || say("pasted") });
    Object.assign(this, { model: null, record: null, trouble: null, why: null, open: false });
    this.#url = URL.createObjectURL(file);
    this.element = element("li", { className: "card" });
    this.say();
  }

  // Asks the model of that entry; the answer to an earlier one counts no more.
  async ask(model) {
    Object.assign(this, { model, record: null, trouble: null, why: null });
    this.say();
    try {
      const record = await this.engine.predict(this.file, model.name);
      if (this.model === model) this.record = record;
    } catch (trouble) {
      if (this.model === model) this.trouble = trouble;
    }
    this.say();
    if (this.open && this.explains && this.model === model) await this.explain();
  }

  // Whether who answered can say why. The models may be known later than the photo is here.
  get explains() {
    return Boolean(this.record && this.model.explains && this.engine.explain);
  }

  async explain() {
    this.open = true;
    const model = this.model;
    this.say();
    try {
      const why = await this.engine.explain(this.file, model.name, this.record.predictions[0].index);
      if (this.model === model) this.why = why;
    } catch (trouble) {
      if (this.model === model) this.why = { trouble };
    }
    this.say();
  }

  // What a screen reader is told of the answer.
  get summary() {
    if (this.trouble) return `${this.name}: ${troubleText(this.trouble)}`;
    if (!this.record) return say("wait"); // another model is asked meanwhile
    return say("said", this.name, verdict(this.record), percent(this.record.predictions[0].probability));
  }

  close() {
    URL.revokeObjectURL(this.#url);
    this.element.remove();
  }

  // Builds the card anew, as its state and the language are now; the focus stays where it was.
  say() {
    const focused = this.element.querySelector(":focus")?.dataset.does;
    const more = this.open && this.explains;
    this.element.className = more ? "card open" : "card";
    this.element.replaceChildren(
      ...(more ? [] : [element("div", { className: "frame" }, this.#picture())]),
      element("div", { className: "told" }, this.#head(), ...this.#answer(), this.#buttons()),
      ...(more ? [this.#more()] : []),
    );
    if (focused) this.element.querySelector(`[data-does="${focused}"]`)?.focus();
  }

  #picture() {
    const picture = element("img", { alt: say("picture", this.name), src: this.#url });
    picture.addEventListener("error", () => this.#convert(picture), { once: true });
    return picture;
  }

  // HEIC, TIFF and others are shown by few browsers; the engine may make a picture of them.
  async #convert(picture) {
    try {
      const blob = await this.engine.preview(this.file);
      URL.revokeObjectURL(this.#url);
      picture.src = this.#url = URL.createObjectURL(blob);
    } catch {
      picture.replaceWith(element("div", { className: "gone", textContent: "?" }));
    }
  }

  #head() {
    return element("p", { className: "file" }, named(this.name));
  }

  #answer() {
    if (this.trouble) return [troubled(this.trouble)];
    if (!this.record) return [element("p", { className: "note", textContent: say("wait") })];
    return answer(this.record);
  }

  #buttons() {
    const line = element("div", { className: "buttons" });
    if (this.explains) {
      const toggle = element("button", { type: "button", textContent: say(this.open ? "hide" : "why"), ariaExpanded: String(this.open) });
      toggle.dataset.does = "why";
      toggle.setAttribute("aria-label", `${toggle.textContent} ${this.name}`);
      toggle.addEventListener("click", () => (this.open ? this.#fold() : this.explain()));
      line.append(toggle);
    }
    const away = element("button", { type: "button", className: "quiet", textContent: say("remove") });
    away.dataset.does = "remove";
    away.setAttribute("aria-label", `${say("remove")} ${this.name}`);
    away.addEventListener("click", () => this.removed(this));
    line.append(away);
    return line;
  }

  #fold() {
    this.open = false;
    this.say();
  }

  #more() {
    if (this.why?.trouble) return troubled(this.why.trouble);
    const parts = this.why ? explained(this.why, this.#picture()) : [this.#picture(), element("p", { className: "note", textContent: say("wait") })];
    return element("div", { className: "why" }, ...parts);
  }
}

function troubled(trouble) {
  return element("p", { className: "trouble", textContent: troubleText(trouble), title: trouble.message });
}

// A Trouble in the language chosen, with the engine's own reason behind it where it can be read.
export function troubleText(trouble) {
  const kinds = ["photo", "large", "busy", "gone", "refused"];
  const text = say(kinds.includes(trouble.kind) ? trouble.kind : "wrong");
  return trouble.message && readsReasons() ? `${text} (${trouble.message})` : text;
}
