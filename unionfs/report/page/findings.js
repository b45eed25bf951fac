// The findings of lint, one block per rule: where, what each implementation shows, how to repair.

const FINDING_ROWS = 20;
const LEVELS = ["error", "warning", "info"];

function drawFindings(data, revealPath) {
  const place = byId("findings-body");
  const byRule = new Map();
  for (const finding of data.findings) {
    if (!byRule.has(finding.rule)) byRule.set(finding.rule, []);
    byRule.get(finding.rule).push(finding);
  }
  if (!byRule.size) {
    place.append(el("p", { class: "card empty", text: "None. Every implementation reads these layers alike." }));
    return;
  }
  const rank = ([name]) => LEVELS.indexOf(data.rules[name].severity);
  const blocks = [...byRule].sort((one, two) => rank(one) - rank(two) || two[1].length - one[1].length);
  const layers = new Map(data.layers.map((layer) => [layer.number, layer]));
  for (const [name, found] of blocks) place.append(ruleBlock(data.rules[name], name, found, layers, revealPath));
}

function ruleBlock(rule, name, found, layers, revealPath) {
  const title = el("summary", {}, el("span", { class: `level ${rule.severity}`, text: rule.severity }),
    el("span", { class: "rule-title", text: rule.title }), el("span", { class: "rule-name", text: name }),
    el("span", { class: "times", text: number(found.length) }));
  const shows = el("dl", { class: "shows" });
  for (const [who, what] of Object.entries(rule.shows)) shows.append(el("dt", { text: who }), el("dd", { text: what }));
  const places = el("ul", { class: "places" });
  let shown = 0;
  const add = () => {
    for (const finding of found.slice(shown, shown + FINDING_ROWS)) {
      const detail = finding.detail ? el("span", { class: "more", text: show(finding.detail) }) : null;
      places.append(el("li", {}, badge(layers.get(finding.layer)),
        pathButton(show(finding.path), () => revealPath(finding.path)), detail));
      shown += 1;
    }
    more.hidden = shown >= found.length;
    more.textContent = `Show more of ${number(found.length)}`;
  };
  const more = el("button", { type: "button", class: "more-button", on: { click: add } });
  add();
  return el("details", { class: "card rule" }, title, el("div", { class: "rule-body" },
    el("div", {}, el("p", { text: rule.why.replaceAll("`", "") }), places, more),
    el("div", {}, shows, el("p", { class: "fix" }, el("strong", { text: "Repair: " }), rule.fix.replaceAll("`", "")))));
}
