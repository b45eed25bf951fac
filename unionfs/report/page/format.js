// Text for people, and elements. Everything of the image becomes text here, never markup.

const UNITS = ["B", "kB", "MB", "GB", "TB", "PB"];
const PLAIN = /^[\x20-\x5b\x5d-\x7e]*$/;
const ODD = /[\p{C}\p{Zl}\p{Zp}\\]|(?! )\p{Zs}/gu;

/** A name as the commands print it: odd bytes, control and format characters as escapes. */
function show(text) {
  return PLAIN.test(text) ? text : text.replace(ODD, escaped);
}

function escaped(char) {
  const code = char.codePointAt(0);
  if (char === "\\") return "\\\\";
  if (code >= 0xdc80 && code <= 0xdcff) return "\\x" + (code - 0xdc00).toString(16);
  if (char === "\n") return "\\n";
  if (char === "\r") return "\\r";
  if (char === "\t") return "\\t";
  const hex = code.toString(16);
  if (code < 0x100) return "\\x" + hex.padStart(2, "0");
  return code < 0x10000 ? "\\u" + hex.padStart(4, "0") : "\\U" + hex.padStart(8, "0");
}

/** Bytes in decimal units, three digits, as docker and podman write them. */
function bytes(count) {
  let value = count;
  let unit = 0;
  while (value >= 1000 && unit < UNITS.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return (unit ? Number(value.toPrecision(3)) : value) + "\u202f" + UNITS[unit];
}

function number(count) {
  return String(count).replace(/\B(?=(\d{3})+$)/g, "\u202f");
}

function percent(part, whole) {
  if (!whole) return "0\u202f%";
  const value = (100 * part) / whole;
  return (value && value < 0.1 ? "<0.1" : value.toFixed(value < 10 ? 1 : 0)) + "\u202f%";
}

function plural(count, one, many = one + "s") {
  return `${number(count)} ${count === 1 ? one : many}`;
}

/** Make an element. Options: class, text, on (events), data, attributes by name. */
function el(tag, options = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(options)) {
    if (value === undefined || value === null || value === false) continue;
    if (key === "class") made.className = value;
    else if (key === "text") made.textContent = value;
    else if (key === "on") for (const [type, act] of Object.entries(value)) made.addEventListener(type, act);
    else if (key === "data") Object.assign(made.dataset, value);
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

const byId = (id) => document.getElementById(id);

/** The layer's number in its colour. */
function badge(layer, extra = "") {
  const made = el("span", { class: `badge ${extra}`, text: layer.rw ? "rw" : String(layer.number) });
  made.title = layerTitle(layer);
  made.style.setProperty("--hue", layer.hue);
  return made;
}

function layerTitle(layer) {
  return layer.rw ? "rw branch" : `layer ${layer.number}`;
}

/** What made a layer: its command, else its directory. */
function layerOrigin(layer) {
  if (layer.command) return show(layer.command.replace(/^\/bin\/sh -c (#\(nop\) +)?/, ""));
  return layer.rw || !layer.id ? show(layer.path) : layer.names.map(show).join(", ");
}
