/* Draws charts, keeps pages up to date, shows times in the reader's zone, and labels by key. Pages work without it. */
"use strict";

const ERRORS = 1; // Vega's level of that name
const dark = matchMedia("(prefers-color-scheme: dark)");

function showTimes(root) {
  const words = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
  for (const time of root.querySelectorAll("time[datetime]")) {
    const at = new Date(time.dateTime);
    time.textContent = words.format(at);
    time.title = at.toISOString();
  }
}

/* Charts take colours and fonts from the page, so they follow dark mode and print like the rest. */
function chartConfig() {
  const css = getComputedStyle(document.documentElement);
  const colour = (name) => css.getPropertyValue(name).trim();
  const font = getComputedStyle(document.body).fontFamily;
  const text = { labelColor: colour("--soft"), titleColor: colour("--soft"), labelFontSize: 12, titleFontSize: 12,
    titleFontWeight: 500 };
  const series = ["--small", "--large", "--link", "--good", "--bad", "--soft"].map(colour);
  return {
    background: null,
    font,
    view: { stroke: null },
    axis: { ...text, gridColor: colour("--rule"), domainColor: colour("--rule"), tickColor: colour("--rule") },
    legend: { ...text, orient: "top", title: null },
    header: text,
    title: { color: colour("--ink"), subtitleColor: colour("--soft"), fontSize: 13, anchor: "start" },
    text: { color: colour("--ink") },
    style: { "guide-label": { fill: colour("--ink"), font } },
    axisX: { grid: false },
    axisTemporal: { tickCount: 8 },
    rule: { color: colour("--soft") },
    line: { color: series[0] },
    area: { color: series[0] },
    point: { color: series[0] },
    bar: { color: series[0] },
    rect: { color: series[0] },
    range: { category: series, ordinal: series, heatmap: [colour("--sheet"), series[0]], ramp: [colour("--sheet"), series[0]] },
  };
}

async function draw(chart) {
  const plot = chart.querySelector(".plot");
  const spec = JSON.parse(chart.querySelector("script").textContent);
  const options = { ast: true, renderer: "svg", actions: false, defaultStyle: false, config: chartConfig(),
    logLevel: ERRORS, tooltip: { disableDefaultStyle: true } };
  try {
    const { view } = await vegaEmbed(plot, spec, options);
    await view.resize().runAsync();
    plot.querySelector("svg").setAttribute("aria-hidden", "true"); // the whole picture has a name; its parts have none
    chart.dataset.drawn = "yes";
  } catch (error) {
    plot.textContent = `This picture cannot be drawn: ${error.message}. Its figures are in the CSV file.`;
    chart.dataset.drawn = "no";
  }
}

async function drawAll() {
  const charts = [...document.querySelectorAll(".chart")];
  if (!charts.length) return;
  if (!window.vegaEmbed) {
    await new Promise((loaded, failed) => {
      const script = document.createElement("script");
      script.src = document.body.dataset.vega;
      script.onload = loaded;
      script.onerror = failed;
      document.head.append(script);
    });
  }
  for (const chart of charts) await draw(chart);
}

/* When calls were recorded, the marked parts are taken from the page as it is by then; what is in use is left alone. */
async function refresh() {
  const answer = await fetch(location.href, { headers: { accept: "text/html" } });
  if (!answer.ok || answer.redirected) return;
  const now = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const part of document.querySelectorAll("[data-live][id]")) {
    const next = now.getElementById(part.id);
    if (!next || part.contains(document.activeElement)) continue;
    showTimes(next);
    part.replaceWith(document.adoptNode(next));
  }
  document.getElementById("live").textContent = `updated ${new Date().toLocaleTimeString()}`;
}

function follow() {
  if (!document.querySelector("[data-live]")) return;
  const every = 5000;
  let last = Date.now(), waiting = false;
  const stream = new EventSource("/dashboard/events");
  stream.addEventListener("recorded", () => {
    if (waiting || document.hidden) return;
    waiting = true;
    setTimeout(async () => {
      try { await refresh(); } finally { last = Date.now(); waiting = false; }
    }, Math.max(0, last + every - Date.now()));
  });
  addEventListener("pagehide", () => stream.close());
}

/* One key, one label: the keys that the buttons show. */
function labelByKey() {
  const form = document.querySelector("form[data-keys]");
  if (!form) return;
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    const button = [...form.querySelectorAll("[data-key]")].find((each) => each.dataset.key === event.key);
    if (!button) return;
    event.preventDefault();
    form.requestSubmit(button);
  });
}

showTimes(document);
document.querySelector("nav [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });
for (const form of document.querySelectorAll("form[data-auto]"))
  form.addEventListener("change", () => form.requestSubmit());
addEventListener("keydown", (event) => {
  if (event.key === "Escape") document.activeElement?.closest(".about")?.classList.add("dismissed");
});
addEventListener("focusout", (event) => event.target.closest?.(".about")?.classList.remove("dismissed"));
dark.addEventListener("change", drawAll);
drawAll();
follow();
labelByKey();
