// The web page: queries /search for every selected release and renders the hits. Everything that comes from data (ids,
// metadata, file names, error messages) is set as text and never becomes HTML.

const EXAMPLES = [
  "a dog running through water",
  "two people on a mountain",
  "children playing in the street",
  "a red car",
  "someone jumping in the air",
];
const TYPING_DELAY_MS = 150; // pause in typing after which the query is sent
const POLL_INTERVAL_MS = 2000; // between checks whether the thumbnails are ready
const MAX_RETRIES = 5; // when the server is busy
const CAPTION_KEYS = ["text", "caption", "title", "name"]; // metadata shown in place of a missing image

const $ = (id) => document.getElementById(id);

const state = {
  releases: [], // the response of /releases
  selected: [], // ids of the releases to search
  text: "",
  image: null, // {blob, name, url} when searching by image
  where: [],
  count: 10,
  results: new Map(), // release id -> response of /search, {error}, or {loading}
  open: null, // {release, index} of the hit in the dialog
};
let pendingSearch = new AbortController();

// ---------------------------------------------------------------------------------------------------------------------
// Helpers

/** Creates an element; string children become text nodes. */
function element(tag, attributes = {}, ...children) {
  const created = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) created.addEventListener(name.slice(2), value);
    else if (value === true) created.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) created.setAttribute(name, value);
  }
  created.append(...children.filter((child) => child !== null));
  return created;
}

const number = (value) => Number(value).toLocaleString("en");
const plural = (count, word) => `${number(count)} ${word}${count === 1 ? "" : "s"}`;
const toText = (value) => (typeof value === "string" ? value : JSON.stringify(value));
const releaseOf = (id) => state.releases.find((release) => release.id === id);
const thumbnail = (release, id, size) => `/thumbnail?${new URLSearchParams({ id, release, size })}`;

function wait(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(new DOMException("aborted", "AbortError"));
    });
  });
}

/** Fetches JSON, with retries while the server is busy. Throws an Error with the server's message. */
async function fetchJson(url, options = {}) {
  for (let attempt = 1; ; attempt += 1) {
    let response;
    let content;
    try {
      response = await fetch(url, options);
      content = await response.json();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Error("The server does not respond. Is “searchforge serve” still running?");
    }
    if (response.ok) return content;
    const retryAfter = Number(response.headers.get("Retry-After"));
    if (response.status !== 503 || !retryAfter || attempt > MAX_RETRIES) throw new Error(content.error);
    await wait(retryAfter * 1000, options.signal);
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Searching

/**
 * Searches every selected release.
 * @param history "push" adds a history entry for the Back button, "replace" changes the current one, "none" neither.
 */
async function search(history = "push") {
  pendingSearch.abort();
  pendingSearch = new AbortController();
  const { signal } = pendingSearch;
  if (history !== "none") saveToUrl(history);
  const started = state.image !== null || state.text !== "";
  document.body.classList.toggle("start", !started);
  document.title = started ? `${state.image ? state.image.name : state.text} – searchforge` : "searchforge";
  if (!started) {
    state.results.clear();
    draw();
    return;
  }
  drawPending();
  await Promise.all(
    state.selected.map(async (id) => {
      const parameters = new URLSearchParams({ k: state.count, release: id });
      for (const condition of state.where) parameters.append("where", condition);
      let result;
      try {
        if (state.image) {
          result = await fetchJson(`/search?${parameters}`, { method: "POST", body: state.image.blob, signal });
        } else {
          parameters.set("q", state.text);
          result = await fetchJson(`/search?${parameters}`, { signal });
        }
      } catch (error) {
        if (error.name === "AbortError") return;
        result = { error: error.message };
      }
      if (!signal.aborted) state.results.set(id, result);
    }),
  );
  if (!signal.aborted) draw();
}

function setImage(blob, name) {
  clearImage();
  state.image = { blob, name, url: URL.createObjectURL(blob) };
  state.text = "";
  $("query").value = "";
  drawQueryImage();
  search();
}

function clearImage() {
  if (state.image) URL.revokeObjectURL(state.image.url);
  state.image = null;
  drawQueryImage();
}

function addCondition(condition) {
  const valid = /^[^=]+=/.test(condition);
  $("filter-hint").hidden = valid;
  $("filter-hint").textContent = "Enter a filter as key=value, for example split=dev.";
  if (!valid) return false;
  if (!state.where.includes(condition)) state.where.push(condition);
  drawConditions();
  search();
  return true;
}

// ---------------------------------------------------------------------------------------------------------------------
// The URL: holds the text, filters and releases of a search, so that it can be reloaded and shared; never an image.

function saveToUrl(history) {
  const parameters = new URLSearchParams();
  if (state.text) parameters.set("q", state.text);
  for (const condition of state.where) parameters.append("where", condition);
  if (state.count !== 10) parameters.set("k", state.count);
  if (state.selected.length < state.releases.length) for (const id of state.selected) parameters.append("release", id);
  const address = `${location.pathname}${parameters.size ? `?${parameters}` : ""}`;
  if (address === location.pathname + location.search) return;
  if (history === "push") window.history.pushState(null, "", address);
  else window.history.replaceState(null, "", address);
}

function loadFromUrl() {
  const parameters = new URLSearchParams(location.search);
  state.text = (parameters.get("q") ?? "").trim();
  state.where = parameters.getAll("where");
  const count = parameters.get("k") ?? "10";
  state.count = [...$("count").options].some((option) => option.value === count) ? Number(count) : 10;
  const named = parameters.getAll("release").filter(releaseOf);
  state.selected = named.length ? named : state.releases.map((release) => release.id);
  clearImage();
  $("query").value = state.text;
  $("count").value = state.count;
  drawReleases();
  drawConditions();
  search("none");
}

// ---------------------------------------------------------------------------------------------------------------------
// Rendering

function drawReleases() {
  const several = state.releases.length > 1;
  $("releases").replaceChildren(
    ...state.releases.map((release) => {
      const content = [
        release.live ? element("span", { class: "dot", title: "live" }) : null,
        element("bdi", {}, release.id),
      ];
      if (!several) return element("span", { class: "release", title: figures(release).join(" · ") }, ...content);
      const pressed = state.selected.includes(release.id);
      const toggle = () => {
        const rest = state.selected.filter((id) => id !== release.id);
        if (pressed && !rest.length) return;
        const chosen = pressed ? rest : [...state.selected, release.id];
        state.selected = state.releases.map((each) => each.id).filter((id) => chosen.includes(id));
        drawReleases();
        search();
      };
      const attributes = { class: "release", type: "button", "aria-pressed": String(pressed), title: figures(release).join(" · ") };
      return element("button", { ...attributes, onclick: toggle }, ...content);
    }),
  );
}

/** Returns the figures of a release as short texts. */
function figures({ figures: measured, live }) {
  const parts = [live ? "live" : null];
  if (measured.images !== undefined) parts.push(plural(measured.images, "image"));
  if (measured.recall_at_10) parts.push(`recall@10 ${measured.recall_at_10.toFixed(3)}`);
  if (measured.latency_p50_ms) parts.push(`${measured.latency_p50_ms.toFixed(1)} ms`);
  if (measured.bytes_per_image) parts.push(`${Math.round(measured.bytes_per_image)} bytes per image`);
  return parts.filter(Boolean);
}

function drawIntro() {
  const [first] = state.releases;
  const many = state.releases.length > 1;
  $("headline").textContent = many ? "Compare releases side by side" : "Describe what you are looking for";
  $("lead").textContent = many
    ? `Every query runs on ${plural(state.releases.length, "release")}, with the same files that an app would open.`
    : "Runs on this machine, with the same file that an app would open.";
  $("facts").replaceChildren(...(many ? [] : figures(first).map((text) => element("li", {}, text))));
  $("examples").replaceChildren(
    ...EXAMPLES.map((text) =>
      element("button", { type: "button", class: "example", onclick: () => searchText(text) }, text),
    ),
  );
}

function drawQueryImage() {
  $("picked").hidden = !state.image;
  const mouse = matchMedia("(pointer: fine)").matches; // touch devices cannot drop files
  $("query").placeholder = state.image ? "or describe it" : `Describe it${mouse ? ", or drop an image here" : ""}`;
  if (state.image) {
    $("picked-image").src = state.image.url;
    $("picked-name").textContent = state.image.name;
  } else {
    $("picked-image").removeAttribute("src");
  }
}

function drawConditions() {
  $("filters").replaceChildren(
    ...state.where.map((condition) => {
      const remove = () => {
        state.where = state.where.filter((each) => each !== condition);
        drawConditions();
        search();
        $("filter").focus();
      };
      const button = { type: "button", "aria-label": `Remove the filter ${condition}`, onclick: remove };
      return element("span", { class: "chip" }, element("bdi", {}, condition), element("button", button, "×"));
    }),
  );
}

function draw() {
  const compared = state.selected.length > 1;
  $("columns").classList.toggle("compared", compared);
  const results = state.selected.map((id) => state.results.get(id)).filter((result) => result?.hits);
  const complete = results.length === state.selected.length;
  const counts = compared && complete ? countReleases(results) : null;
  $("columns").replaceChildren(...state.selected.flatMap((id) => drawColumn(id, compared, counts)));
  $("summary").textContent = complete ? summary(results, counts) : "";
  $("summary").classList.toggle("hidden", !counts);
  drawFilterSuggestions(results);
}

/** Dims the previous hits until the next ones arrive; shows placeholders if there are none. */
function drawPending() {
  for (const id of state.selected) {
    if (!state.results.get(id)?.hits) state.results.set(id, { loading: true });
  }
  if (state.selected.some((id) => !state.results.get(id).hits)) draw();
  for (const column of $("columns").children) column.classList.add("pending");
}

/** Returns the number of releases that found each item, by item id. */
function countReleases(results) {
  const counts = new Map();
  for (const { hits } of results) for (const { id } of hits) counts.set(id, (counts.get(id) ?? 0) + 1);
  return counts;
}

function summary(results, counts) {
  const most = Math.max(...results.map((result) => result.hits.length));
  if (!counts || !most) return plural(most, "hit");
  const common = [...counts.values()].filter((count) => count === results.length).length;
  return `${number(common)} of ${plural(most, "hit")} in common`;
}

function drawColumn(id, compared, counts) {
  const result = state.results.get(id);
  if (!result) return [];
  const release = releaseOf(id);
  const column = element("section", { class: "column", "aria-label": id });
  if (compared) column.append(element("h2", {}, element("bdi", {}, id), element("small", {}, figures(release).join(" · "))));
  if (result.error) {
    const retry = element("button", { type: "button", onclick: () => search("none") }, "Try again");
    column.append(note("Something went wrong", result.error, "error", retry));
    return [column];
  }
  if (!result.hits) {
    const placeholders = Array.from({ length: Math.min(state.count, 10) }, () => element("li", { class: "placeholder" }));
    column.append(element("p", { class: "stats" }, "Searching…"));
    column.append(element("ol", { class: "grid", "aria-hidden": "true" }, ...placeholders));
    return [column];
  }
  column.append(stats(result));
  if (!result.hits.length) {
    const reason = state.where.length
      ? `None of the ${plural(result.considered, "nearest item")} matches the filter.`
      : "The release has no similar items.";
    column.append(note("No hits", reason));
    return [column];
  }
  const best = Math.max(...result.hits.map((hit) => hit.score), 1e-6);
  const cards = result.hits.map((hit, index) => card(release, hit, index, best, counts?.get(hit.id) === 1));
  column.append(element("ol", { class: "grid" }, ...cards));
  return [column];
}

function stats(result) {
  const parts = [element("strong", {}, `${result.milliseconds.toFixed(1)} ms`)];
  const meaning = "Time to encode the query and search, on one thread";
  parts.push(element("span", { title: meaning }, "in the Task Library"));
  parts.push(element("span", {}, plural(result.hits.length, "hit")));
  if (state.where.length) parts.push(element("span", {}, `among the ${number(result.considered)} nearest`));
  if (result.cached) parts.push(element("span", { title: "The same query ran before" }, "cached"));
  return element("p", { class: "stats" }, ...parts);
}

function note(title, text, kind = "", ...more) {
  const lines = [element("strong", {}, title), element("bdi", {}, text)];
  return element("div", { class: `note ${kind}`, role: kind ? "alert" : null }, ...lines, ...more.map(block));
}

const block = (child) => element("div", {}, child);

function card(release, hit, index, best, unique) {
  const caption = captionOf(hit);
  const meter = element("span", { class: "meter", "aria-hidden": "true" }, element("i"));
  meter.firstChild.style.setProperty("--share", Math.max(0, hit.score / best));
  const label = `Hit ${index + 1}, score ${hit.score.toFixed(3)}${unique ? ", only here" : ""}: ${caption}`;
  const button = element(
    "button",
    { type: "button", class: "card", "aria-label": label, title: caption, onclick: () => openDetail(release.id, index) },
    picture(release, hit, "small", "frame"),
    unique ? element("span", { class: "badge" }, "only here") : null,
    element(
      "span",
      { class: "line" },
      element("span", { class: "rank" }, String(index + 1)),
      meter,
      element("span", { class: "score" }, hit.score.toFixed(3)),
    ),
  );
  return element("li", { class: unique ? "unique" : null }, button);
}

/** Returns the text that describes a hit. */
function captionOf(hit) {
  const key = CAPTION_KEYS.find((name) => typeof hit.metadata[name] === "string" && hit.metadata[name]);
  return key ? hit.metadata[key] : hit.id;
}

function picture(release, hit, size, frame) {
  const holder = element("span", { class: frame });
  const showCaption = () => holder.replaceChildren(element("span", { class: "caption", dir: "auto" }, captionOf(hit)));
  if (release.pictures.state !== "ready") {
    showCaption();
    return holder;
  }
  const image = element("img", { alt: "", decoding: "async", loading: size === "small" ? "lazy" : null });
  image.addEventListener("error", showCaption);
  image.src = thumbnail(release.id, hit.id, size);
  if (!image.complete) image.className = "late";
  holder.append(image);
  return holder;
}

/** Suggests the metadata of the hits as filters. */
function drawFilterSuggestions(results) {
  const suggestions = new Set();
  for (const { hits } of results) {
    for (const { metadata } of hits) {
      for (const [key, value] of Object.entries(metadata)) {
        if (typeof value !== "object" && String(value).length < 40) suggestions.add(`${key}=${value}`);
      }
    }
  }
  $("suggestions").replaceChildren(...[...suggestions].slice(0, 100).map((value) => element("option", { value })));
}

// ---------------------------------------------------------------------------------------------------------------------
// The dialog of one hit

function openDetail(releaseId, index) {
  const { hits } = state.results.get(releaseId);
  const hit = hits[index];
  state.open = { release: releaseId, index };
  $("detail-stage").replaceChildren(picture(releaseOf(releaseId), hit, "large", "shown"));
  $("detail-place").textContent = `Hit ${index + 1} of ${hits.length}`;
  $("detail-id").textContent = hit.id;
  $("detail-scores").replaceChildren(...state.selected.flatMap((id) => scoreIn(id, hit.id)));
  const entries = Object.entries(hit.metadata);
  $("detail-metadata-title").hidden = entries.length === 0;
  $("detail-metadata").replaceChildren(...entries.flatMap(([key, value]) => metadataRow(key, value)));
  $("detail-previous").disabled = index === 0;
  $("detail-next").disabled = index === hits.length - 1;
  const release = releaseOf(releaseId);
  $("detail-similar").hidden = !(release.pictures.state === "ready" && release.queries.includes("image"));
  if (!$("detail").open) $("detail").showModal();
}

function scoreIn(releaseId, id) {
  const hits = state.results.get(releaseId)?.hits ?? [];
  const rank = hits.findIndex((hit) => hit.id === id);
  const text = rank < 0 ? "not among the hits" : `${hits[rank].score.toFixed(4)} (hit ${rank + 1})`;
  const name = state.selected.length > 1 ? releaseId : "Score";
  const value = state.selected.length > 1 ? text : hits[rank].score.toFixed(4);
  return [element("dt", {}, element("bdi", {}, name)), element("dd", {}, value)];
}

function metadataRow(key, value) {
  const text = element("bdi", {}, toText(value));
  const plain = value === null || typeof value !== "object";
  const filter = () => {
    $("detail").close();
    addCondition(`${key}=${toText(value)}`);
  };
  const shown = plain ? element("button", { type: "button", title: "Filter by this", onclick: filter }, text) : text;
  return [element("dt", {}, element("bdi", {}, key)), element("dd", {}, shown)];
}

function moveDetail(offset) {
  const { release, index } = state.open;
  if (state.results.get(release).hits[index + offset]) openDetail(release, index + offset);
}

async function findSimilar() {
  const { release, index } = state.open;
  const { id } = state.results.get(release).hits[index];
  const response = await fetch(thumbnail(release, id, "large"));
  $("detail").close();
  if (response.ok) setImage(await response.blob(), id);
  window.scrollTo({ top: 0 });
}

// ---------------------------------------------------------------------------------------------------------------------
// Interaction

function searchText(text, history = "push") {
  clearImage();
  state.text = text.trim();
  if ($("query").value.trim() !== state.text) $("query").value = text;
  search(history);
}

/** Moves the focus to the nearest card in the direction of the arrow key. */
function moveFocus(event) {
  const cards = [...document.querySelectorAll(".card")];
  const from = cards.indexOf(document.activeElement);
  if (from < 0) return;
  const here = cards[from].getBoundingClientRect();
  const middle = (box) => [box.left + box.width / 2, box.top + box.height / 2];
  const [x, y] = middle(here);
  const direction = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  let target = null;
  let nearest = Infinity;
  for (const each of cards) {
    const [cx, cy] = middle(each.getBoundingClientRect());
    const along = (cx - x) * direction[0] + (cy - y) * direction[1];
    const across = Math.abs((cx - x) * direction[1]) + Math.abs((cy - y) * direction[0]);
    if (along > 4 && along + 3 * across < nearest) [target, nearest] = [each, along + 3 * across];
  }
  if (target) {
    target.focus();
    event.preventDefault();
  }
}

function searchChosenFile() {
  const [file] = $("file").files;
  if (file) setImage(file, file.name);
  $("file").value = "";
}

function addListeners() {
  let timer;
  $("query").addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(() => {
      if (state.image && !$("query").value.trim()) return;
      searchText($("query").value, state.text ? "replace" : "push"); // typing adds one history entry
    }, TYPING_DELAY_MS);
  });
  $("form").addEventListener("submit", (event) => {
    event.preventDefault();
    clearTimeout(timer);
    if (document.activeElement === $("filter")) {
      if (addCondition($("filter").value.trim())) $("filter").value = "";
    } else if (!state.image || $("query").value.trim()) {
      searchText($("query").value);
    }
  });
  $("filter").addEventListener("input", () => {
    $("filter-hint").hidden = true;
  });
  $("count").addEventListener("change", () => {
    state.count = Number($("count").value);
    search();
  });
  $("file").addEventListener("change", searchChosenFile);
  $("picked-remove").addEventListener("click", () => {
    clearImage();
    search();
    $("query").focus();
  });
  $("home").addEventListener("click", (event) => {
    event.preventDefault();
    state.where = [];
    drawConditions();
    searchText("");
    $("query").focus();
  });
  window.addEventListener("popstate", loadFromUrl);
  window.addEventListener("paste", (event) => {
    const file = [...(event.clipboardData?.files ?? [])].find((each) => each.type.startsWith("image/"));
    if (file) setImage(file, file.name);
  });
  addDropListeners();
  addKeyListeners();
  $("detail").addEventListener("click", (event) => {
    if (event.target === $("detail")) $("detail").close(); // the backdrop
  });
  $("detail").addEventListener("close", () => {
    // The browser has restored the focus a moment ago; leave it alone if the user has moved it since.
    if (!document.activeElement.matches(".card, body")) return;
    const column = state.selected.indexOf(state.open.release);
    document.querySelectorAll(".column")[column]?.querySelectorAll(".card")[state.open.index]?.focus();
  });
  $("detail-close").addEventListener("click", () => $("detail").close());
  $("detail-previous").addEventListener("click", () => moveDetail(-1));
  $("detail-next").addEventListener("click", () => moveDetail(1));
  $("detail-similar").addEventListener("click", findSimilar);
}

function addDropListeners() {
  const hasFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  window.addEventListener("dragover", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    $("drop").hidden = false;
  });
  window.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) $("drop").hidden = true; // left the window
  });
  window.addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    $("drop").hidden = true;
    const [file] = event.dataTransfer.files;
    if (file) setImage(file, file.name);
  });
}

function addKeyListeners() {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if ($("detail").open) {
      if (event.key === "ArrowLeft") moveDetail(-1);
      if (event.key === "ArrowRight") moveDetail(1);
    } else if (event.key === "/" && !/^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName)) {
      event.preventDefault();
      $("query").focus();
      $("query").select();
    } else if (event.key === "ArrowDown" && document.activeElement === $("query")) {
      document.querySelector(".card")?.focus();
      event.preventDefault();
    } else if (event.key.startsWith("Arrow")) {
      moveFocus(event);
    }
  });
}

/** Polls /releases until no release's thumbnails are being prepared. */
async function pollThumbnails() {
  while (state.releases.some((release) => release.pictures.state === "preparing")) {
    await wait(POLL_INTERVAL_MS);
    const { releases } = await fetchJson("/releases");
    const changed = releases.some((release) => release.pictures.state !== releaseOf(release.id)?.pictures.state);
    state.releases = releases;
    if (changed) draw();
  }
}

async function start() {
  try {
    ({ releases: state.releases } = await fetchJson("/releases"));
  } catch (error) {
    $("headline").textContent = "Something went wrong";
    $("lead").textContent = error.message;
    return;
  }
  addListeners();
  drawIntro();
  loadFromUrl();
  searchChosenFile(); // a file chosen while the releases were loading
  if (matchMedia("(pointer: fine)").matches) $("query").focus(); // on touch devices, the keyboard would cover the page
  pollThumbnails().catch(() => {}); // the next search reports an unresponsive server
}

start();
