// What is said first: the numbers of the image, its layers, and the paths that waste most.

const WASTE_ROWS = 12;

function drawSummary(data) {
  const { totals, layers, findings, rules } = data;
  const levels = { error: 0, warning: 0, info: 0 };
  for (const finding of findings) levels[rules[finding.rule].severity] += 1;
  const said = Object.entries(levels).filter(([, count]) => count);
  const score = totals.score >= 1 ? "100" : (Math.floor(totals.score * 1000) / 10).toFixed(1);
  const ring = el("span", { class: "ring", "aria-hidden": "true" });
  ring.style.setProperty("--part", totals.score);
  byId("summary").append(
    tile("Shipped", bytes(totals.size), `in ${plural(layers.length, "layer")}`),
    tile("Visible", bytes(totals.visible), `${plural(data.files.count - 1 - data.files.gone[0], "path")}`),
    tile(
      "Wasted",
      bytes(totals.wasted),
      `${percent(totals.wasted, totals.size)} of what is shipped`,
      totals.wasted ? "bad" : "good",
    ),
    el("div", { class: "tile" }, ring, el("div", {}, el("p", { class: "label", text: "Efficiency" }),
      el("p", { class: "value", text: `${score}\u202f%` }), el("p", { class: "more", text: "the score of dive" }))),
    tile(
      "Findings",
      number(findings.length),
      said.map(([level, count]) => plural(count, level, level === "info" ? "infos" : undefined)).join(", ") ||
        "nothing to repair",
      levels.error ? "bad" : levels.warning ? "warn" : "good",
    ),
  );
}

function tile(label, value, more, mood = "") {
  return el(
    "div",
    { class: `tile ${mood}` },
    el("div", {}, el("p", { class: "label", text: label }), el("p", { class: "value", text: value }),
      el("p", { class: "more", text: more })),
  );
}

function drawLayers(data, openLayer, filterLayer) {
  const largest = Math.max(1, ...data.layers.map((layer) => layer.size));
  const body = byId("layer-table").tBodies[0];
  for (const layer of [...data.layers].reverse()) {
    const origin = layerOrigin(layer);
    const command = el("td", { class: "origin" }, el("span", { class: "clip", text: origin || "–", title: origin }));
    const notes = [...layer.names.map(show), layer.created ? show(layer.created).slice(0, 10) : ""];
    const note = notes.filter((text) => text && text !== origin).join(" · ");
    if (note) command.append(el("span", { class: "more", text: note }));
    const open = el("button", {
      class: "quiet layer",
      type: "button",
      on: { click: () => openLayer(layer) },
      "aria-label": `Show ${layerTitle(layer)} in the map`,
    }, badge(layer));
    body.append(
      el(
        "tr",
        { data: { layer: layer.number } },
        el("th", { scope: "row" }, open),
        command,
        el("td", { class: "number", text: bytes(layer.size) }),
        el("td", { class: `number ${layer.wasted ? "wasted" : "none"}`, text: layer.wasted ? bytes(layer.wasted) : "–" }),
        el("td", { class: "share" }, share(layer, largest)),
        ...changes(layer, filterLayer),
      ),
    );
  }
}

/** A bar as long as the layer is large, with what is hidden at its end. */
function share(layer, largest) {
  const bar = el("span", {
    class: "share-bar",
    role: "img",
    "aria-label": `${percent(layer.wasted, layer.size)} of the layer is wasted`,
  });
  bar.style.setProperty("--hue", layer.hue);
  bar.style.width = `${(100 * layer.size) / largest}%`;
  if (layer.wasted) {
    const part = el("span", { class: "hatched" });
    part.style.width = `${(100 * layer.wasted) / layer.size}%`;
    bar.append(part);
  }
  return bar;
}

function changes(layer, filterLayer) {
  return [["added", "+"], ["changed", "~"], ["deleted", "−"]].map(([key, sign]) => {
    if (!layer[key]) return el("td", { class: "number none", text: "–" });
    const text = `${sign}${number(layer[key])}`;
    return el("td", { class: `number ${key}` }, el("button", {
      class: "quiet",
      type: "button",
      text,
      on: { click: () => filterLayer(layer) },
      "aria-label": `${number(layer[key])} ${key}: show what ${layerTitle(layer)} does in the tree`,
    }));
  });
}

function drawWaste(data, reveal) {
  const { files } = data;
  const found = [];
  for (let at = 1; at < files.count; at++) {
    let own = 0;
    for (let version = files.first[at]; version < files.first[at + 1]; version++) {
      if (files.kind[files.kinds[version]].wasted) own += files.sizes[version];
    }
    if (own) found.push([own, at]);
  }
  found.sort((one, two) => two[0] - one[0] || one[1] - two[1]);
  const body = byId("waste-body");
  if (!found.length) {
    body.append(el("p", { class: "empty", text: "Nothing. Every byte that is shipped can be seen." }));
    return;
  }
  const layers = new Map(data.layers.map((layer) => [layer.number, layer]));
  const rows = el("tbody");
  const table = el("table", { class: "paths" }, el("thead", {}, el("tr", {},
    el("th", { scope: "col", class: "number", text: "Bytes" }), el("th", { scope: "col", text: "Path" }),
    el("th", { scope: "col", text: "Shipped by" }), el("th", { scope: "col", text: "Hidden by" }))), rows);
  let shown = 0;
  const add = () => {
    for (const [own, at] of found.slice(shown, shown + WASTE_ROWS * (shown ? 10 : 1))) {
      const versions = files.versions(at).filter((version) => version.wasted);
      const cell = (numbers) => el("td", {}, ...[...new Set(numbers)].map((value) => badge(layers.get(value))));
      rows.append(el("tr", {}, el("td", { class: "number wasted", text: bytes(own) }),
        el("td", {}, pathButton(files.path(at), () => reveal(at))),
        cell(versions.map((version) => version.layer)), cell(versions.map((version) => version.cause.layer))));
      shown += 1;
    }
    more.hidden = shown >= found.length;
    more.textContent = `Show more of ${plural(found.length, "path")}`;
  };
  const more = el("button", { type: "button", class: "more-button", on: { click: add } });
  body.append(table, more);
  add();
}

function pathButton(path, act) {
  return el("button", { type: "button", class: "quiet path", text: path, on: { click: act } });
}
