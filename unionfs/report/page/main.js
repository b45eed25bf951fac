// Puts the page together.

const THEMES = ["auto", "light", "dark"];

/** Colours as the system wants them, until somebody chooses. */
function themes() {
  const button = byId("theme");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let at = 0;
  const set = () => {
    const isDark = at ? THEMES[at] === "dark" : dark.matches;
    document.documentElement.dataset.theme = isDark ? "dark" : "light";
    button.textContent = { auto: "◐ Auto", light: "☀ Light", dark: "☾ Dark" }[THEMES[at]];
    button.setAttribute("aria-label", `Colours: ${THEMES[at]}`);
  };
  button.addEventListener("click", () => {
    at = (at + 1) % THEMES.length;
    set();
  });
  dark.addEventListener("change", set);
  set();
}

/** Paper shows all findings, and the screen afterwards what it did before. */
function printing() {
  let closed = [];
  window.addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open])")];
    for (const block of closed) block.open = true;
  });
  window.addEventListener("afterprint", () => {
    for (const block of closed) block.open = false;
  });
}

async function start() {
  themes();
  printing();
  const data = await unpack();
  byId("title").textContent = show(data.title);
  byId("main").hidden = false;
  const tree = new FileTree(data);
  const map = new Treemap(data, (at) => tree.reveal(at));
  drawSummary(data);
  drawLayers(
    data,
    (layer) => {
      map.open(layer);
      byId("map").scrollIntoView();
    },
    (layer) => tree.showLayer(layer),
  );
  drawWaste(data, (at) => tree.reveal(at));
  drawFindings(data, (path) => tree.reveal(data.hiddenBy.get(path) ?? data.files.nearest(path)));
  document.documentElement.dataset.ready = "true";
}

start().catch((error) => {
  const place = byId("trouble");
  place.hidden = false;
  place.textContent = typeof DecompressionStream === "undefined"
    ? "This browser is too old for the page: it needs DecompressionStream (Chromium 80, Firefox 113, Safari 16.4)."
    : `The data of this page cannot be read: ${error.message}`;
  document.documentElement.dataset.ready = "failed";
});
