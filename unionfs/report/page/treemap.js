// The map: rectangles whose areas are bytes. First by layer, then by directory; hatched is hidden.

const MAP_GAP = 2;
const MAP_HEAD = 19;
const MAP_MANY = 80;
const MAP_LAYERS = 600;
const MAP_LEVELS = 3;
const MAP_SMALLEST = 14;

/**
 * Lay items (with `size`, largest first) out in a rectangle, as nearly square as may be
 * (Bruls, Huizing, van Wijk: Squarified Treemaps). Yields [item, x, y, width, height].
 */
function* squarify(items, x, y, width, height) {
  let left = items.reduce((sum, item) => sum + item.size, 0);
  let from = 0;
  while (from < items.length && left > 0 && width > 0 && height > 0) {
    const side = Math.min(width, height);
    const scale = (width * height) / left;
    let to = from;
    let sum = 0;
    let best = Infinity;
    while (to < items.length) {
      const next = sum + items[to].size;
      const worst = ratio(items[from].size * scale, items[to].size * scale, next * scale, side);
      if (worst > best) break;
      best = worst;
      sum = next;
      to += 1;
    }
    const isRow = width < height;
    const depth = (sum * scale) / side;
    let along = 0;
    for (const item of items.slice(from, to)) {
      const length = (item.size / sum) * side;
      yield isRow ? [item, x + along, y, length, depth] : [item, x, y + along, depth, length];
      along += length;
    }
    if (isRow) [y, height] = [y + depth, height - depth];
    else [x, width] = [x + depth, width - depth];
    left -= sum;
    from = to;
  }
}

function ratio(largest, smallest, sum, side) {
  const square = (sum * sum) / (side * side);
  return Math.max(largest / square, smallest ? square / smallest : Infinity);
}

class Treemap {
  constructor(data, reveal) {
    this.data = data;
    this.reveal = reveal;
    this.place = byId("treemap");
    this.words = byId("map-words");
    this.crumbs = byId("crumbs");
    this.trail = [];
    this.place.addEventListener("keydown", (event) => this.key(event));
    this.place.addEventListener("mouseleave", () => this.say(this.current()));
    let width = 0;
    new ResizeObserver(() => {
      if (Math.round(this.place.clientWidth) === width) return;
      width = Math.round(this.place.clientWidth);
      this.draw();
    }).observe(this.place);
  }

  root() {
    this.whole ??= {
      size: this.data.totals.size,
      wasted: this.data.totals.wasted,
      kids: this.data.layers
        .map((layer) => ({ ...this.data.files.shippedBy(layer.number), layer, isLayer: true }))
        .filter((node) => node.size)
        .sort((one, two) => two.size - one.size),
    };
    return this.whole;
  }

  current() {
    return this.trail[this.trail.length - 1] ?? this.root();
  }

  /** Show a layer, or with null all of them. */
  open(layer) {
    const found = layer && this.root().kids.find((node) => node.layer === layer);
    this.trail = found ? [found] : [];
    this.draw();
  }

  enter(node) {
    if (node.rest) return;
    if (!node.kids.length) {
      this.reveal(node.at);
      return;
    }
    this.trail.push(node);
    this.draw(true);
  }

  up(count) {
    this.trail.length = Math.max(0, count);
    this.draw(true);
  }

  label(node) {
    if (node.rest) return plural(node.rest, node.layer ? "more path" : "more layer");
    if (!node.layer) return "all layers";
    if (node.isLayer) return layerTitle(node.layer);
    return this.data.files.name(node.at) + (node.kids.length ? "/" : "");
  }

  say(node) {
    const parts = [this.label(node), bytes(node.size)];
    if (node.isLayer) parts.splice(1, 0, layerOrigin(node.layer));
    else if (node.layer && !node.rest) parts[0] = `${layerTitle(node.layer)}: ${this.data.files.path(node.at)}`;
    if (node.wasted) parts.push(`${bytes(node.wasted)} of it wasted`);
    if (node === this.current() && node.size) parts.push("click to look inside, Escape to go back");
    this.words.textContent = parts.filter(Boolean).join(" · ");
  }

  draw(focus = false) {
    const width = this.place.clientWidth;
    const height = this.place.clientHeight;
    const node = this.current();
    this.place.replaceChildren();
    this.drawCrumbs();
    if (!node.size) {
      this.place.append(el("p", { class: "empty", text: "There are no bytes in these layers." }));
    } else {
      this.fill(this.place, node, [width, height], [0, 0, width, height], 0);
    }
    this.say(node);
    this.cells = [...this.place.querySelectorAll(":scope > .cell")];
    this.cells.forEach((cell, at) => {
      cell.tabIndex = at ? -1 : 0;
    });
    if (focus) this.cells[0]?.focus({ preventScroll: true });
  }

  drawCrumbs() {
    const all = [this.root(), ...this.trail];
    this.crumbs.replaceChildren(
      ...all.flatMap((node, at) => {
        const isLast = at === all.length - 1;
        const text = at ? this.label(node) : "All layers";
        const made = isLast
          ? el("span", { text, "aria-current": "location" })
          : el("button", { type: "button", class: "quiet", text, on: { click: () => this.up(at) } });
        return at ? [el("span", { class: "sep", text: "›", "aria-hidden": "true" }), made] : [made];
      }),
    );
  }

  /** Draw what is in a node into a box of an element of that size. */
  fill(parent, node, size, box, level) {
    const scale = (box[2] * box[3]) / node.size;
    let items = node.kids.map((kid) => (kid.layer ? kid : Object.assign(kid, { layer: node.layer })));
    const most = node.layer ? MAP_MANY : MAP_LAYERS;
    const keep = items.filter((item, at) => at < most && item.size * scale >= MAP_SMALLEST);
    if (keep.length < items.length) {
      const rest = items.slice(keep.length);
      const sum = (key) => rest.reduce((total, item) => total + item[key], 0);
      items = [...keep, { size: sum("size"), wasted: sum("wasted"), rest: rest.length, layer: node.layer, kids: [] }];
      items.sort((one, two) => two.size - one.size);
    }
    for (const [item, ...inner] of squarify(items, ...box)) parent.append(this.cell(item, size, inner, level));
  }

  cell(node, outer, [x, y, width, height], level) {
    const isFile = !node.kids.length;
    const cell = el(level ? "div" : "button", {
      class: `cell level${level}${isFile && node.wasted === node.size ? " hatched" : ""}${node.rest ? " rest" : ""}`,
      type: level ? null : "button",
      data: { bytes: node.size, wasted: node.wasted, label: this.label(node) },
      on: {
        mouseover: (event) => {
          event.stopPropagation();
          this.say(node);
        },
        ...(level ? {} : { click: (event) => this.enter(this.target(event, node)), focus: () => this.say(node) }),
      },
      "aria-label": level ? null : `${this.label(node)}, ${bytes(node.size)}${node.wasted ? `, ${bytes(node.wasted)} wasted` : ""}`,
      "aria-hidden": level ? "true" : null,
    });
    cell.node = node;
    // Parts of the element around, so that it fits on paper as well.
    const part = (length, axis) => `${(100 * length) / outer[axis]}%`;
    Object.assign(cell.style, { left: part(x, 0), top: part(y, 1), width: part(width, 0), height: part(height, 1) });
    if (!level) cell.style.setProperty("--hue", node.layer?.hue ?? 220);
    const hasText = width > 34 && height > 16;
    if (hasText) {
      const text = node.isLayer && width > 150 ? `${this.label(node)} · ${bytes(node.size)}` : this.label(node);
      cell.append(el("span", { class: "cell-text", text }));
    }
    const isOpen = node.kids.length && level < MAP_LEVELS && width > 30 && height > MAP_HEAD + 18;
    if (isOpen) {
      cell.classList.add("open");
      const edge = MAP_GAP + 1;
      const box = [edge, MAP_HEAD, width - 2 * edge, height - MAP_HEAD - edge];
      this.fill(cell, node, [width, height], box, level + 1);
    } else if (node.wasted && !cell.classList.contains("hatched")) {
      const strip = el("span", { class: "strip hatched" });
      strip.style.height = `${(100 * node.wasted) / node.size}%`;
      cell.append(strip);
    }
    return cell;
  }

  /** A click on a file deep inside shows the file; on anything else it opens the outermost cell. */
  target(event, node) {
    const inner = event.detail ? event.target.closest(".cell")?.node : null;
    return inner && !inner.rest && !inner.kids.length ? inner : node;
  }

  key(event) {
    const at = this.cells.indexOf(document.activeElement);
    if (event.key === "Escape" || event.key === "Backspace") {
      if (!this.trail.length) return;
      this.up(this.trail.length - 1);
    } else if (at >= 0 && event.key.startsWith("Arrow")) {
      this.move(at, event.key);
    } else return;
    event.preventDefault();
  }

  /** Move the focus to the nearest cell on that side. */
  move(at, key) {
    const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[key];
    const centre = (cell) => [cell.offsetLeft + cell.offsetWidth / 2, cell.offsetTop + cell.offsetHeight / 2];
    const [x, y] = centre(this.cells[at]);
    let best = null;
    let least = Infinity;
    for (const cell of this.cells) {
      const [cx, cy] = centre(cell);
      const ahead = (cx - x) * dx + (cy - y) * dy;
      const aside = Math.abs((cx - x) * dy) + Math.abs((cy - y) * dx);
      if (ahead > 0.5 && ahead + 2 * aside < least) [best, least] = [cell, ahead + 2 * aside];
    }
    if (!best) return;
    this.cells[at].tabIndex = -1;
    best.tabIndex = 0;
    best.focus({ preventScroll: true });
  }
}
