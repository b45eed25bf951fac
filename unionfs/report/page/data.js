// The data of the page: unpacked from the block in the document, with sums per directory.

async function unpack() {
  const packed = Uint8Array.from(atob(byId("data").textContent.trim()), (char) => char.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const found = JSON.parse(await new Response(stream).text());
  found.layers.forEach((layer, at) => {
    // Golden steps through the hues, past those that mean waste (red to yellow).
    layer.hue = Math.round(80 + ((0.55 + at * 0.61803398875) % 1) * 245);
  });
  found.files = new Files(found.tree);
  delete found.tree;
  // Markers by what they are about and by their own path, which is in no tree.
  found.markersOf = new Map();
  found.hiddenBy = new Map();
  for (const marker of found.markers) {
    const at = found.files.nearest(marker.path === "/" ? "" : marker.path);
    if (!found.markersOf.has(at)) found.markersOf.set(at, []);
    found.markersOf.get(at).push(marker);
    found.hiddenBy.set(marker.marker, at);
  }
  return found;
}

/**
 * All paths, by number in preorder (0 is the root). Columns: `names`, `parent`, `end` (one past
 * the last path inside), `depth`, `first` (its versions are first[i] to first[i + 1]); sums
 * over everything inside: `visible` and `wasted` bytes, `gone` (hidden paths).
 */
class Files {
  constructor(tree) {
    const count = tree.kids.length;
    this.count = count;
    this.names = tree.names.split("/");
    this.kids = tree.kids;
    this.parent = new Int32Array(count).fill(-1);
    this.end = new Int32Array(count).fill(count);
    this.depth = new Int32Array(count);
    this.first = new Int32Array(count + 1);
    this.kinds = tree.kinds;
    this.sizes = tree.sizes;
    this.kind = tree.kind.map(([layer, type, mode, uid, gid, wasted, cause]) => {
      const found = cause ? tree.cause[cause - 1] : null;
      return {
        layer,
        type,
        mode,
        uid,
        gid,
        wasted: wasted === 1,
        cause: found && { layer: found[0], kind: found[1], marker: found[2] },
      };
    });
    this.shape();
    for (let at = 0; at < count; at++) this.first[at + 1] = this.first[at] + tree.counts[at];
    this.sum();
    this.shown = new Array(count);
  }

  shape() {
    const open = [];
    const left = [];
    for (let at = 0; at < this.count; at++) {
      while (open.length && left[left.length - 1] === 0) {
        this.end[open.pop()] = at;
        left.pop();
      }
      if (open.length) {
        left[left.length - 1] -= 1;
        this.parent[at] = open[open.length - 1];
        this.depth[at] = open.length;
      }
      open.push(at);
      left.push(this.kids[at]);
    }
  }

  sum() {
    this.visible = new Float64Array(this.count);
    this.wasted = new Float64Array(this.count);
    this.gone = new Int32Array(this.count);
    this.isVisible = new Uint8Array(this.count);
    this.isDir = new Uint8Array(this.count);
    for (let at = this.count - 1; at >= 0; at--) {
      for (let version = this.first[at]; version < this.first[at + 1]; version++) {
        const kind = this.kind[this.kinds[version]];
        if (kind.wasted) this.wasted[at] += this.sizes[version];
        else this.visible[at] += this.sizes[version];
        if (!kind.cause) this.isVisible[at] = 1;
      }
      if (at === 0 || this.first[at] === this.first[at + 1]) this.isVisible[at] = 1;
      this.isDir[at] = at === 0 || this.kids[at] > 0 || this.top(at)?.type === "directory" ? 1 : 0;
      if (!this.isVisible[at]) this.gone[at] += 1;
      const above = this.parent[at];
      if (above < 0) continue;
      this.visible[above] += this.visible[at];
      this.wasted[above] += this.wasted[at];
      this.gone[above] += this.gone[at];
    }
  }

  /** The versions of a path, top first: what each layer ships, its size, and what hides it. */
  versions(at) {
    const found = [];
    for (let version = this.first[at + 1] - 1; version >= this.first[at]; version--) {
      found.push({ ...this.kind[this.kinds[version]], size: this.sizes[version] });
    }
    return found;
  }

  /** The kind of the topmost version that shows, else of the topmost. */
  top(at) {
    for (let version = this.first[at + 1] - 1; version >= this.first[at]; version--) {
      const kind = this.kind[this.kinds[version]];
      if (!kind.cause) return kind;
    }
    return this.kind[this.kinds[this.first[at + 1] - 1]];
  }

  /** The name as it is shown. */
  name(at) {
    this.shown[at] ??= show(this.names[at]);
    return this.shown[at];
  }

  /** The path as it is shown. */
  path(at) {
    const parts = [];
    for (let up = at; up > 0; up = this.parent[up]) parts.push(this.name(up));
    return "/" + parts.reverse().join("/");
  }

  /** The number of a path as the image spells it, or of the nearest one above that there is. */
  nearest(path) {
    this.index ??= this.spell();
    let text = path;
    while (!this.index.has(text)) text = text.slice(0, Math.max(0, text.lastIndexOf("/")));
    return this.index.get(text);
  }

  spell() {
    const paths = [""];
    const found = new Map([["", 0]]);
    for (let at = 1; at < this.count; at++) {
      const path = `${paths[this.depth[at] - 1]}/${this.names[at]}`;
      paths[this.depth[at]] = path;
      found.set(path, at);
    }
    return found;
  }

  /** The bytes that one layer ships, as a tree: at, size, wasted, kids (largest first). */
  shippedBy(layer) {
    this.byLayer ??= this.split();
    return this.byLayer.get(layer) ?? { at: 0, size: 0, wasted: 0, kids: [] };
  }

  split() {
    const roots = new Map();
    const nodes = new Map();
    const node = (layer, at) => {
      const key = layer * this.count + at;
      let found = nodes.get(key);
      if (!found) {
        found = { at, size: 0, wasted: 0, kids: [] };
        nodes.set(key, found);
        if (at === 0) roots.set(layer, found);
        else node(layer, this.parent[at]).kids.push(found);
      }
      return found;
    };
    for (let at = this.count - 1; at >= 0; at--) {
      for (let version = this.first[at]; version < this.first[at + 1]; version++) {
        const size = this.sizes[version];
        if (!size) continue;
        const kind = this.kind[this.kinds[version]];
        for (let up = at; up >= 0; up = this.parent[up]) {
          const found = node(kind.layer, up);
          found.size += size;
          if (kind.wasted) found.wasted += size;
        }
      }
    }
    for (const found of nodes.values()) found.kids.sort((one, two) => two.size - one.size);
    return roots;
  }
}
