// Elements out of plain values. Text is always text: a file called <script> is a name.
export function element(tag, settings = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(settings)) {
    if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

// A name of a class or a file, set apart so that Arabic does not turn the line.
export const named = (name) => element("bdi", { textContent: name });

const SVG = "http://www.w3.org/2000/svg";

export function drawn(tag, settings = {}, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(settings)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}
