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
    const at = found.files.nearest(marker.path);
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
    let at = 0;
    for (const part of path.split("/")) {
      if (!part) continue;
      const inner = this.inside(at).get(part);
      if (inner === undefined) break;
      at = inner;
    }
    return at;
  }

  /** The names in a directory, read once. */
  inside(at) {
    this.entries ??= new Map();
    let found = this.entries.get(at);
    if (!found) {
      found = new Map();
      for (let inner = at + 1; inner < this.end[at]; inner = this.end[inner]) found.set(this.names[inner], inner);
      this.entries.set(at, found);
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
    for (let at = this.count - 1; at >= 0; at--) {
      const way = [];
      for (let version = this.first[at]; version < this.first[at + 1]; version++) {
        const size = this.sizes[version];
        if (!size) continue;
        if (!way.length) for (let up = at; up >= 0; up = this.parent[up]) way.push(up);
        const { layer, wasted } = this.kind[this.kinds[version]];
        let above = null;
        for (let step = way.length - 1; step >= 0; step--) {
          const key = layer * this.count + way[step];
          let found = nodes.get(key);
          if (!found) {
            found = { at: way[step], size: 0, wasted: 0, kids: [] };
            nodes.set(key, found);
            if (above) above.kids.push(found);
            else roots.set(layer, found);
          }
          found.size += size;
          if (wasted) found.wasted += size;
          above = found;
        }
      }
    }
    for (const found of nodes.values()) found.kids.sort((one, two) => two.size - one.size);
    return roots;
  }
}
