// The files: a tree of any size, of which only the rows on the screen are in the document.

const ROW = 26;
const SPARE = 8;

class FileTree {
  constructor(data) {
    this.data = data;
    this.files = data.files;
    this.layers = new Map(data.layers.map((layer) => [layer.number, layer]));
    this.place = byId("tree");
    this.space = byId("space");
    this.rows = byId("rows");
    this.expanded = new Uint8Array(this.files.count);
    this.expanded[0] = 1;
    this.selected = 0;
    this.filter = { text: "", state: "all", layer: 0 };
    this.place.addEventListener("scroll", () => this.draw(), { passive: true });
    this.place.addEventListener("keydown", (event) => this.key(event));
    this.place.addEventListener("click", (event) => this.click(event));
    new ResizeObserver(() => this.draw()).observe(this.place);
    this.controls();
    this.openAlone(0);
    this.arrange();
    this.select(0);
  }

  controls() {
    const search = byId("search");
    let timer = 0;
    search.addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(() => this.narrow({ text: search.value }), 120);
    });
    search.addEventListener("keydown", (event) => {
      if (event.key !== "ArrowDown" && event.key !== "Enter") return;
      event.preventDefault();
      clearTimeout(timer);
      if (this.filter.text !== search.value) this.narrow({ text: search.value });
      this.place.focus();
    });
    byId("states").addEventListener("change", (event) => this.narrow({ state: event.target.value }));
    const choice = byId("layer");
    choice.append(el("option", { value: 0, text: "All layers" }));
    for (const layer of [...this.data.layers].reverse()) {
      const origin = layerOrigin(layer).slice(0, 40);
      choice.append(el("option", { value: layer.number, text: `${layerTitle(layer)}${origin ? ` · ${origin}` : ""}` }));
    }
    choice.addEventListener("change", () => this.narrow({ layer: Number(choice.value) }));
  }

  /** Open directories that are the only entry of theirs, so that the first click shows something. */
  openAlone(at) {
    for (let inner = at; this.files.kids[inner] === 1 && this.files.kids[inner + 1]; inner += 1) {
      this.expanded[inner + 1] = 1;
    }
  }

  /** Change the filter and go to the first path that fits. */
  narrow(change) {
    Object.assign(this.filter, change);
    byId("layer").value = this.filter.layer;
    this.arrange();
    this.place.scrollTop = 0;
    const first = this.matched ? this.list.findIndex((at) => this.matched[at]) : 0;
    this.select(this.list[Math.max(0, first)] ?? 0, true);
  }

  showLayer(layer) {
    byId("search").value = "";
    byId("states").querySelector("[value=all]").checked = true;
    this.narrow({ text: "", state: "all", layer: layer.number });
    byId("files").scrollIntoView();
  }

  /** Find the paths that fit and those above them. */
  match() {
    const { text, state, layer } = this.filter;
    this.matched = null;
    this.keep = null;
    if (!text && state === "all" && !layer) return;
    const { files } = this;
    const keep = new Uint8Array(files.count);
    const matched = new Uint8Array(files.count);
    const exact = /[A-Z]/.test(text);
    const wanted = exact ? text : text.toLowerCase();
    const byPath = text.includes("/");
    // What is in a directory that was found can be looked at, too.
    const inside = new Uint8Array(files.count);
    const paths = [""];
    let count = 0;
    for (let at = 1; at < files.count; at++) {
      let name = files.name(at);
      if (!exact && wanted) name = name.toLowerCase();
      if (byPath) {
        name = `${paths[files.depth[at] - 1]}/${name}`;
        paths[files.depth[at]] = name;
      }
      const fits = !wanted || name.includes(wanted);
      const above = files.parent[at];
      inside[at] = wanted && (inside[above] || matched[above]) ? 1 : 0;
      if (!fits && !inside[at]) continue;
      if (state !== "all" && (state === "visible") !== Boolean(files.isVisible[at])) continue;
      if (layer && !this.touches(at, layer)) continue;
      keep[at] = 1;
      if (!fits) continue;
      matched[at] = 1;
      count += 1;
    }
    for (let at = files.count - 1; at > 0; at--) if (keep[at]) keep[files.parent[at]] = 1;
    keep[0] = 1;
    this.matched = matched;
    this.keep = keep;
    this.found = count;
    // A search opens the way to what it found, a filter only if that is not much.
    this.unfold = Boolean(text) || count <= 500 ? new Uint8Array(files.count) : null;
    if (!this.unfold) return;
    for (let at = files.count - 1; at > 0; at--) {
      if (matched[at] || this.unfold[at]) this.unfold[files.parent[at]] = 1;
    }
  }

  /** Whether a layer adds, changes or hides a path; directories that it only passes do not count. */
  touches(at, layer) {
    const { files } = this;
    for (let version = files.first[at]; version < files.first[at + 1]; version++) {
      const kind = files.kind[files.kinds[version]];
      if (kind.cause?.layer === layer) return true;
      if (kind.layer === layer && (version === files.first[at] || kind.type !== "directory")) return true;
    }
    return false;
  }

  arrange() {
    this.match();
    this.fold();
    const { files } = this;
    byId("count").textContent = this.keep
      ? `${plural(this.found, "path")} of ${number(files.count - 1)}`
      : plural(files.count - 1, "path");
  }

  isOpen(at) {
    return this.unfold ? this.unfold[at] === 1 : this.expanded[at] === 1;
  }

  /** Compute the rows anew. */
  fold() {
    const { files, keep } = this;
    const list = [];
    for (let at = 0; at < files.count; ) {
      if (keep && !keep[at]) {
        at = files.end[at];
        continue;
      }
      list.push(at);
      at = this.isOpen(at) ? at + 1 : files.end[at];
    }
    this.list = list;
    this.space.style.height = `${list.length * ROW}px`;
    this.draw();
  }

  draw() {
    const top = Math.max(0, Math.floor(this.place.scrollTop / ROW) - SPARE);
    const bottom = Math.min(this.list.length, Math.ceil((this.place.scrollTop + this.place.clientHeight) / ROW) + SPARE);
    this.rows.style.transform = `translateY(${top * ROW}px)`;
    this.rows.replaceChildren(...this.list.slice(top, bottom).map((at) => this.row(at)));
    this.place.setAttribute("aria-activedescendant", `path${this.selected}`);
  }

  row(at) {
    const { files } = this;
    const isDir = files.isDir[at] === 1;
    const hasKids = files.kids[at] > 0;
    const top = files.top(at);
    const row = el("div", {
      id: `path${at}`,
      class: `file${files.isVisible[at] ? "" : " gone"}${this.matched && !this.matched[at] ? " passed" : ""}`,
      role: "treeitem",
      "aria-level": files.depth[at] + 1,
      "aria-selected": at === this.selected ? "true" : "false",
      "aria-expanded": hasKids ? String(this.isOpen(at)) : null,
      data: { at },
    });
    const indent = el("span", { class: `twisty${hasKids ? (this.isOpen(at) ? " down" : " right") : ""}`, "aria-hidden": "true" });
    indent.style.marginLeft = `${Math.min(files.depth[at], 40) * 16}px`;
    row.append(indent, el("span", { class: `icon ${icon(isDir, top)}`, "aria-hidden": "true" }), this.title(at, isDir));
    const end = el("span", { class: "ends" });
    if (files.wasted[at]) end.append(el("span", { class: "wasted-tag", text: `${bytes(files.wasted[at])} wasted` }));
    end.append(el("span", { class: "size", text: files.visible[at] || (top?.type === "file" && !top.cause) ? bytes(files.visible[at]) : "" }), this.origin(at, top));
    row.append(end);
    return row;
  }

  title(at, isDir) {
    const name = at ? this.files.name(at) : "/";
    const made = el("bdi", { class: "filename" });
    const wanted = this.filter.text;
    const where = wanted && !wanted.includes("/")
      ? (/[A-Z]/.test(wanted) ? name : name.toLowerCase()).indexOf(wanted)
      : -1;
    if (where < 0) made.textContent = name;
    else made.append(name.slice(0, where), el("mark", { text: name.slice(where, where + wanted.length) }), name.slice(where + wanted.length));
    if (isDir && at) made.append("/");
    return made;
  }

  /** The layer that gives the path, or the one that hides it. */
  origin(at, top) {
    const made = el("span", { class: "origin-tag" });
    if (!top || !at) return made;
    if (top.cause) made.append(el("span", { class: "by", text: "hidden by" }), badge(this.layers.get(top.cause.layer)));
    else made.append(badge(this.layers.get(top.layer)));
    return made;
  }

  click(event) {
    const row = event.target.closest(".file");
    if (!row) return;
    const at = Number(row.dataset.at);
    if (event.target.closest(".twisty") || at === this.selected) this.toggle(at);
    this.select(at);
  }

  toggle(at, open = !this.isOpen(at)) {
    if (!this.files.kids[at] || this.isOpen(at) === open) return;
    (this.unfold ?? this.expanded)[at] = open ? 1 : 0;
    if (open && !this.unfold) this.openAlone(at);
    this.fold();
  }

  select(at, scroll = false) {
    this.selected = at;
    if (scroll) this.scrollTo(at);
    this.draw();
    drawDetail(this, at);
  }

  scrollTo(at) {
    const y = this.list.indexOf(at) * ROW;
    const { scrollTop, clientHeight } = this.place;
    if (y < scrollTop) this.place.scrollTop = y;
    else if (y + ROW > scrollTop + clientHeight) this.place.scrollTop = y + ROW - clientHeight;
  }

  /** Show a path, wherever it is, without any filter that hides it. */
  reveal(at) {
    byId("search").value = "";
    byId("states").querySelector("[value=all]").checked = true;
    this.filter = { text: "", state: "all", layer: 0 };
    byId("layer").value = 0;
    for (let up = this.files.parent[at]; up >= 0; up = this.files.parent[up]) this.expanded[up] = 1;
    this.arrange();
    this.selected = at;
    this.place.scrollTop = this.list.indexOf(at) * ROW - this.place.clientHeight / 3;
    this.select(at);
    byId("files").scrollIntoView();
    this.place.focus({ preventScroll: true });
  }

  key(event) {
    const { files, list } = this;
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const here = list.indexOf(this.selected);
    const page = Math.max(1, Math.floor(this.place.clientHeight / ROW) - 1);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -list.length, End: list.length };
    const isOpen = this.isOpen(this.selected) && files.kids[this.selected] > 0;
    if (event.key in steps) {
      this.select(list[Math.min(list.length - 1, Math.max(0, here + steps[event.key]))], true);
    } else if (event.key === "ArrowRight") {
      if (isOpen) this.select(list[here + 1] ?? this.selected, true);
      else this.toggle(this.selected, true);
    } else if (event.key === "ArrowLeft") {
      if (isOpen) this.toggle(this.selected, false);
      else if (this.selected) this.select(files.parent[this.selected], true);
    } else if (event.key === "Enter" || event.key === " ") {
      this.toggle(this.selected);
    } else if (event.key === "/") {
      byId("search").focus();
    } else return;
    event.preventDefault();
  }
}

function icon(isDir, top) {
  if (isDir) return "dir";
  if (top?.type === "symbolic link") return "link";
  return !top || top.type === "file" ? "plain" : "special";
}

/** Beside the tree: which layers have the path, top first, and what hides each. */
function drawDetail(tree, at) {
  const { files } = tree;
  const place = byId("detail");
  const versions = files.versions(at);
  const top = files.top(at);
  place.replaceChildren(el("h3", { class: "path", text: files.path(at) }));
  if (top && at) {
    const verdict = top.cause
      ? el("p", { class: "verdict gone" }, "hidden by ", badge(tree.layers.get(top.cause.layer)), ` ${layerTitle(tree.layers.get(top.cause.layer))}`)
      : el("p", { class: "verdict" }, "visible, from ", badge(tree.layers.get(top.layer)), ` ${layerTitle(tree.layers.get(top.layer))}`);
    place.append(verdict);
  }
  if (files.kids[at]) {
    const gone = files.gone[at];
    place.append(el("p", { class: "inside", text:
      `${plural(files.end[at] - at - 1, "path")} inside${gone ? `, ${number(gone)} hidden` : ""}; ${bytes(files.visible[at])} visible` +
      (files.wasted[at] ? `, ${bytes(files.wasted[at])} wasted` : "") }));
  }
  const steps = el("ol", { class: "versions", "aria-label": "Layers that have it, the top-most first" });
  let covered = false;
  for (const version of versions) {
    const layer = tree.layers.get(version.layer);
    const owner = `${version.type} ${version.mode.toString(8).padStart(4, "0")} ${version.uid}:${version.gid}`;
    const step = el("li", { class: version.cause ? "gone" : "" }, badge(layer), el("div", {},
      el("p", { class: "what", text: layerTitle(layer) }), el("p", { class: "more clip", text: layerOrigin(layer), title: layerOrigin(layer) }),
      el("p", { class: "facts", text: version.type === "file" ? `${owner}, ${bytes(version.size)}` : owner }),
      el("p", { class: version.cause ? "fate gone" : "fate", text: fate(tree, files.path(at), version, covered) })));
    steps.append(step);
    covered ||= !version.cause;
  }
  place.append(steps);
  for (const marker of tree.data.markersOf.get(at) ?? []) {
    const layer = tree.layers.get(marker.layer);
    place.append(el("p", { class: "marker" }, badge(layer), ` ${show(marker.marker)} `,
      marker.count ? `hides ${plural(marker.count, "path")}, ${bytes(marker.size)}` : `hides nothing: ${marker.reason}`));
  }
}

function fate(tree, path, version, covered) {
  const { cause } = version;
  if (!cause) return covered ? "merged with the layer above" : "shows";
  const title = layerTitle(tree.layers.get(cause.layer));
  if (cause.kind === "entry") {
    return cause.marker ? `hidden: ${show(cause.marker)} of ${title} is no directory` : `replaced by ${title}`;
  }
  return `hidden by the ${cause.kind === "opaque" ? "opaque marker" : "whiteout"} ${show(cause.marker) || path} of ${title}`;
}
