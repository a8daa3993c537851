// Whether a photo is unlike those that the model was trained on: formats/known.py in the browser.

const NEAREST = 3; // photos, whose distances are averaged

/** From what a checkpoint keeps to a function: features (F) -> strangeness, 0 to 1. */
export function strangenessBy({ features, width, scores }) {
  const bytes = Int8Array.from(atob(features), (letter) => letter.charCodeAt(0));
  const rows = Array.from({ length: bytes.length / width }, (_, n) =>
    unit(Float32Array.from(bytes.subarray(n * width, (n + 1) * width))),
  );
  const sorted = [...scores].sort((a, b) => a - b);
  return (seen) => {
    const direction = unit(Float32Array.from(seen));
    const likeness = rows.map((row) => row.reduce((sum, value, at) => sum + value * direction[at], 0));
    const nearest = likeness.sort((a, b) => b - a).slice(0, NEAREST);
    const distance = 1 - nearest.reduce((a, b) => a + b, 0) / nearest.length;
    const nearer = sorted.filter((score) => score < distance).length;
    return (sorted.length - nearer + 1) / (sorted.length + 1);
  };
}

function unit(values) {
  const length = Math.sqrt(values.reduce((sum, value) => sum + value * value, 0)) || 1;
  return values.map((value) => value / length);
}
