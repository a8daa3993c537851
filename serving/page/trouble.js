// What goes wrong between the page and its engine. kind: "photo" (the file is no photo), "large",
// "busy", "gone" (no answer at all), "refused" or "other"; the message tells the engine's reason.
export class Trouble extends Error {
  constructor(kind, reason = "") {
    super(reason);
    this.kind = kind;
  }
}
