// The page: asks /search for every shown release, and draws the hits. Whatever comes from data (ids, metadata, file
// names, reasons) is set as text; no HTML is ever put together from it.

const EXAMPLES = [
  "a dog running through water",
  "two people on a mountain",
  "children playing in the street",
  "a red car",
  "someone jumping in the air",
];
const TYPING_MS = 150; // of silence before a query is sent while it is being typed
const PREPARING_MS = 2000; // between two looks at whether the pictures are prepared
const RETRIES = 5; // where the server says that it is busy
const WORDS = ["text", "caption", "title", "name"]; // metadata shown in place of a picture

const $ = (id) => document.getElementById(id);

const state = {
  releases: [], // as /releases describes them
  shown: [], // ids of those that are asked
  text: "",
  image: null, // {blob, name, url} in place of a text
  where: [],
  count: 10,
  answers: new Map(), // release id -> an answer, {error}, or {loading}
  open: null, // {release, index} of the hit in the dialog
};
let running = new AbortController();

// ---------------------------------------------------------------------------------------------------------------------
// Small helpers

/** Returns a new element; children that are strings become text. */
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

const number = (value) => Number(value).toLocaleString("en");
const plural = (count, word) => `${number(count)} ${word}${count === 1 ? "" : "s"}`;
const written = (value) => (typeof value === "string" ? value : JSON.stringify(value));
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

/** Fetches JSON; waits and asks again where the server is busy. Throws Error with the server's reason. */
async function ask(url, options = {}) {
  for (let attempt = 1; ; attempt += 1) {
    let response;
    let content;
    try {
      response = await fetch(url, options);
      content = await response.json();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Error("The server does not answer. Is “searchforge serve” still running?");
    }
    if (response.ok) return content;
    const again = Number(response.headers.get("Retry-After"));
    if (response.status !== 503 || !again || attempt > RETRIES) throw new Error(content.error);
    await wait(again * 1000, options.signal);
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Searching

/**
 * Asks every shown release.
 * @param history "push": as a step that the Back button undoes; "replace": as part of the present one; "none".
 */
async function search(history = "push") {
  running.abort();
  running = new AbortController();
  const { signal } = running;
  if (history !== "none") remember(history);
  const started = state.image !== null || state.text !== "";
  document.body.classList.toggle("start", !started);
  document.title = started ? `${state.image ? state.image.name : state.text} – searchforge` : "searchforge";
  if (!started) {
    state.answers.clear();
    draw();
    return;
  }
  drawWaiting();
  await Promise.all(
    state.shown.map(async (id) => {
      const parameters = new URLSearchParams({ k: state.count, release: id });
      for (const condition of state.where) parameters.append("where", condition);
      let answer;
      try {
        if (state.image) {
          answer = await ask(`/search?${parameters}`, { method: "POST", body: state.image.blob, signal });
        } else {
          parameters.set("q", state.text);
          answer = await ask(`/search?${parameters}`, { signal });
        }
      } catch (error) {
        if (error.name === "AbortError") return;
        answer = { error: error.message };
      }
      if (!signal.aborted) state.answers.set(id, answer);
    }),
  );
  if (!signal.aborted) draw();
}

function setImage(blob, name) {
  clearImage();
  state.image = { blob, name, url: URL.createObjectURL(blob) };
  state.text = "";
  $("query").value = "";
  drawPicked();
  search();
}

function clearImage() {
  if (state.image) URL.revokeObjectURL(state.image.url);
  state.image = null;
  drawPicked();
}

function addCondition(condition) {
  const valid = /^[^=]+=/.test(condition);
  $("filter-hint").hidden = valid;
  $("filter-hint").textContent = "Write a filter as key=value, such as split=dev.";
  if (!valid) return false;
  if (!state.where.includes(condition)) state.where.push(condition);
  drawConditions();
  search();
  return true;
}

// ---------------------------------------------------------------------------------------------------------------------
// The address: a query can be reloaded and shared. An image cannot.

function remember(history) {
  const parameters = new URLSearchParams();
  if (state.text) parameters.set("q", state.text);
  for (const condition of state.where) parameters.append("where", condition);
  if (state.count !== 10) parameters.set("k", state.count);
  if (state.shown.length < state.releases.length) for (const id of state.shown) parameters.append("release", id);
  const address = `${location.pathname}${parameters.size ? `?${parameters}` : ""}`;
  if (address === location.pathname + location.search) return;
  if (history === "push") window.history.pushState(null, "", address);
  else window.history.replaceState(null, "", address);
}

function recall() {
  const parameters = new URLSearchParams(location.search);
  state.text = (parameters.get("q") ?? "").trim();
  state.where = parameters.getAll("where");
  const count = parameters.get("k") ?? "10";
  state.count = [...$("count").options].some((option) => option.value === count) ? Number(count) : 10;
  const named = parameters.getAll("release").filter(releaseOf);
  state.shown = named.length ? named : state.releases.map((release) => release.id);
  clearImage();
  $("query").value = state.text;
  $("count").value = state.count;
  drawReleases();
  drawConditions();
  search("none");
}

// ---------------------------------------------------------------------------------------------------------------------
// Drawing

function drawReleases() {
  const several = state.releases.length > 1;
  $("releases").replaceChildren(
    ...state.releases.map((release) => {
      const content = [
        release.live ? element("span", { class: "dot", title: "live" }) : null,
        element("bdi", {}, release.id),
      ];
      if (!several) return element("span", { class: "release", title: figures(release).join(" · ") }, ...content);
      const pressed = state.shown.includes(release.id);
      const toggle = () => {
        const rest = state.shown.filter((id) => id !== release.id);
        if (pressed && !rest.length) return;
        const chosen = pressed ? rest : [...state.shown, release.id];
        state.shown = state.releases.map((each) => each.id).filter((id) => chosen.includes(id));
        drawReleases();
        search();
      };
      const attributes = { class: "release", type: "button", "aria-pressed": String(pressed), title: figures(release).join(" · ") };
      return element("button", { ...attributes, onclick: toggle }, ...content);
    }),
  );
}

/** What was measured about a release. */
function figures({ figures: found, live }) {
  const parts = [live ? "live" : null];
  if (found.images !== undefined) parts.push(plural(found.images, "image"));
  if (found.recall_at_10) parts.push(`recall@10 ${found.recall_at_10.toFixed(3)}`);
  if (found.latency_p50_ms) parts.push(`${found.latency_p50_ms.toFixed(1)} ms`);
  if (found.bytes_per_image) parts.push(`${Math.round(found.bytes_per_image)} bytes an image`);
  return parts.filter(Boolean);
}

function drawIntro() {
  const [first] = state.releases;
  const many = state.releases.length > 1;
  $("headline").textContent = many ? "Compare releases side by side" : "Say what you are looking for";
  $("lead").textContent = many
    ? `${plural(state.releases.length, "release")} answer every query, through the very files that an app would open.`
    : "Searched on this machine, through the very file that an app would open.";
  $("facts").replaceChildren(...(many ? [] : figures(first).map((text) => element("li", {}, text))));
  $("examples").replaceChildren(
    ...EXAMPLES.map((text) =>
      element("button", { type: "button", class: "example", onclick: () => searchText(text) }, text),
    ),
  );
}

function drawPicked() {
  $("picked").hidden = !state.image;
  const mouse = matchMedia("(pointer: fine)").matches; // elsewhere nothing is dropped
  $("query").placeholder = state.image ? "or describe it" : `Describe it${mouse ? ", or drop a picture here" : ""}`;
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
  const compared = state.shown.length > 1;
  $("columns").classList.toggle("compared", compared);
  const answers = state.shown.map((id) => state.answers.get(id)).filter((answer) => answer?.hits);
  const complete = answers.length === state.shown.length;
  const holders = compared && complete ? countHolders(answers) : null;
  $("columns").replaceChildren(...state.shown.flatMap((id) => drawColumn(id, compared, holders)));
  $("summary").textContent = complete ? summary(answers, holders) : "";
  $("summary").classList.toggle("hidden", !holders);
  drawKnown(answers);
}

/** Earlier hits stay, dimmed, until the next ones are there; where there are none, boxes stand in for them. */
function drawWaiting() {
  for (const id of state.shown) {
    if (!state.answers.get(id)?.hits) state.answers.set(id, { loading: true });
  }
  if (state.shown.some((id) => !state.answers.get(id).hits)) draw();
  for (const column of $("columns").children) column.classList.add("waiting");
}

/** Returns for every id how many of the answers hold it. */
function countHolders(answers) {
  const holders = new Map();
  for (const { hits } of answers) for (const { id } of hits) holders.set(id, (holders.get(id) ?? 0) + 1);
  return holders;
}

function summary(answers, holders) {
  const most = Math.max(...answers.map((answer) => answer.hits.length));
  if (!holders || !most) return plural(most, "hit");
  const common = [...holders.values()].filter((count) => count === answers.length).length;
  return `${number(common)} of ${plural(most, "hit")} in common`;
}

function drawColumn(id, compared, holders) {
  const answer = state.answers.get(id);
  if (!answer) return [];
  const release = releaseOf(id);
  const column = element("section", { class: "column", "aria-label": id });
  if (compared) column.append(element("h2", {}, element("bdi", {}, id), element("small", {}, figures(release).join(" · "))));
  if (answer.error) {
    const again = element("button", { type: "button", onclick: () => search("none") }, "Try again");
    column.append(note("This did not work", answer.error, "fault", again));
    return [column];
  }
  if (!answer.hits) {
    const ghosts = Array.from({ length: Math.min(state.count, 10) }, () => element("li", { class: "ghost" }));
    column.append(element("p", { class: "stats" }, "Searching…"));
    column.append(element("ol", { class: "grid", "aria-hidden": "true" }, ...ghosts));
    return [column];
  }
  column.append(stats(answer));
  if (!answer.hits.length) {
    const reason = state.where.length
      ? `None of the ${plural(answer.considered, "nearest item")} meets the filter.`
      : "The release holds nothing near it.";
    column.append(note("No hits", reason));
    return [column];
  }
  const best = Math.max(...answer.hits.map((hit) => hit.score), 1e-6);
  const cards = answer.hits.map((hit, index) => card(release, hit, index, best, holders?.get(hit.id) === 1));
  column.append(element("ol", { class: "grid" }, ...cards));
  return [column];
}

function stats(answer) {
  const parts = [element("strong", {}, `${answer.milliseconds.toFixed(1)} ms`)];
  const meaning = "Encoding the query and searching, on one thread";
  parts.push(element("span", { title: meaning }, "in the Task Library"));
  parts.push(element("span", {}, plural(answer.hits.length, "hit")));
  if (state.where.length) parts.push(element("span", {}, `among the ${number(answer.considered)} nearest`));
  if (answer.cached) parts.push(element("span", { title: "An equal query was answered before" }, "kept answer"));
  return element("p", { class: "stats" }, ...parts);
}

function note(title, text, kind = "", ...more) {
  const lines = [element("strong", {}, title), element("bdi", {}, text)];
  return element("div", { class: `note ${kind}`, role: kind ? "alert" : null }, ...lines, ...more.map(block));
}

const block = (child) => element("div", {}, child);

function card(release, hit, index, best, alone) {
  const words = wordsOf(hit);
  const meter = element("span", { class: "meter", "aria-hidden": "true" }, element("i"));
  meter.firstChild.style.setProperty("--share", Math.max(0, hit.score / best));
  const label = `Hit ${index + 1}, score ${hit.score.toFixed(3)}${alone ? ", only here" : ""}: ${words}`;
  const button = element(
    "button",
    { type: "button", class: "card", "aria-label": label, title: words, onclick: () => openDetail(release.id, index) },
    picture(release, hit, "small", "frame"),
    alone ? element("span", { class: "badge" }, "only here") : null,
    element(
      "span",
      { class: "line" },
      element("span", { class: "rank" }, String(index + 1)),
      meter,
      element("span", { class: "score" }, hit.score.toFixed(3)),
    ),
  );
  return element("li", { class: alone ? "alone" : null }, button);
}

/** What tells a person about a hit without a picture. */
function wordsOf(hit) {
  const key = WORDS.find((name) => typeof hit.metadata[name] === "string" && hit.metadata[name]);
  return key ? hit.metadata[key] : hit.id;
}

function picture(release, hit, size, frame) {
  const holder = element("span", { class: frame });
  const words = () => holder.replaceChildren(element("span", { class: "words", dir: "auto" }, wordsOf(hit)));
  if (release.pictures.state !== "ready") {
    words();
    return holder;
  }
  const image = element("img", { alt: "", decoding: "async", loading: size === "small" ? "lazy" : null });
  image.addEventListener("error", words);
  image.src = thumbnail(release.id, hit.id, size);
  if (!image.complete) image.className = "late";
  holder.append(image);
  return holder;
}

/** Offers the metadata of the hits as filters. */
function drawKnown(answers) {
  const known = new Set();
  for (const { hits } of answers) {
    for (const { metadata } of hits) {
      for (const [key, value] of Object.entries(metadata)) {
        if (typeof value !== "object" && String(value).length < 40) known.add(`${key}=${value}`);
      }
    }
  }
  $("known").replaceChildren(...[...known].slice(0, 100).map((value) => element("option", { value })));
}

// ---------------------------------------------------------------------------------------------------------------------
// One hit

function openDetail(releaseId, index) {
  const { hits } = state.answers.get(releaseId);
  const hit = hits[index];
  state.open = { release: releaseId, index };
  $("detail-stage").replaceChildren(picture(releaseOf(releaseId), hit, "large", "shown"));
  $("detail-place").textContent = `Hit ${index + 1} of ${hits.length}`;
  $("detail-id").textContent = hit.id;
  $("detail-scores").replaceChildren(...state.shown.flatMap((id) => scoreIn(id, hit.id)));
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
  const hits = state.answers.get(releaseId)?.hits ?? [];
  const rank = hits.findIndex((hit) => hit.id === id);
  const text = rank < 0 ? "not among its hits" : `${hits[rank].score.toFixed(4)} (hit ${rank + 1})`;
  const name = state.shown.length > 1 ? releaseId : "Score";
  const value = state.shown.length > 1 ? text : hits[rank].score.toFixed(4);
  return [element("dt", {}, element("bdi", {}, name)), element("dd", {}, value)];
}

function metadataRow(key, value) {
  const text = element("bdi", {}, written(value));
  const plain = value === null || typeof value !== "object";
  const filter = () => {
    $("detail").close();
    addCondition(`${key}=${written(value)}`);
  };
  const shown = plain ? element("button", { type: "button", title: "Filter by this", onclick: filter }, text) : text;
  return [element("dt", {}, element("bdi", {}, key)), element("dd", {}, shown)];
}

function step(by) {
  const { release, index } = state.open;
  if (state.answers.get(release).hits[index + by]) openDetail(release, index + by);
}

async function findSimilar() {
  const { release, index } = state.open;
  const { id } = state.answers.get(release).hits[index];
  const response = await fetch(thumbnail(release, id, "large"));
  $("detail").close();
  if (response.ok) setImage(await response.blob(), id);
  window.scrollTo({ top: 0 });
}

// ---------------------------------------------------------------------------------------------------------------------
// What a person does

function searchText(text, history = "push") {
  clearImage();
  state.text = text.trim();
  if ($("query").value.trim() !== state.text) $("query").value = text;
  search(history);
}

/** Moves the focus among the cards as the arrow key says. */
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

function takeChosenFile() {
  const [file] = $("file").files;
  if (file) setImage(file, file.name);
  $("file").value = "";
}

function listen() {
  let timer;
  $("query").addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(() => {
      if (state.image && !$("query").value.trim()) return;
      searchText($("query").value, state.text ? "replace" : "push"); // Back leads to what was before the typing
    }, TYPING_MS);
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
  $("file").addEventListener("change", takeChosenFile);
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
  window.addEventListener("popstate", recall);
  window.addEventListener("paste", (event) => {
    const file = [...(event.clipboardData?.files ?? [])].find((each) => each.type.startsWith("image/"));
    if (file) setImage(file, file.name);
  });
  listenForDrops();
  listenForKeys();
  $("detail").addEventListener("click", (event) => {
    if (event.target === $("detail")) $("detail").close(); // beside the content
  });
  $("detail").addEventListener("close", () => {
    // This comes a moment after the browser put the focus back; who went on by then is not disturbed.
    if (!document.activeElement.matches(".card, body")) return;
    const column = state.shown.indexOf(state.open.release);
    document.querySelectorAll(".column")[column]?.querySelectorAll(".card")[state.open.index]?.focus();
  });
  $("detail-close").addEventListener("click", () => $("detail").close());
  $("detail-previous").addEventListener("click", () => step(-1));
  $("detail-next").addEventListener("click", () => step(1));
  $("detail-similar").addEventListener("click", findSimilar);
}

function listenForDrops() {
  const holdsFile = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  window.addEventListener("dragover", (event) => {
    if (!holdsFile(event)) return;
    event.preventDefault();
    $("drop").hidden = false;
  });
  window.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) $("drop").hidden = true; // it left the window
  });
  window.addEventListener("drop", (event) => {
    if (!holdsFile(event)) return;
    event.preventDefault();
    $("drop").hidden = true;
    const [file] = event.dataTransfer.files;
    if (file) setImage(file, file.name);
  });
}

function listenForKeys() {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if ($("detail").open) {
      if (event.key === "ArrowLeft") step(-1);
      if (event.key === "ArrowRight") step(1);
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

/** Looks again until no release's pictures are being prepared. */
async function followPictures() {
  while (state.releases.some((release) => release.pictures.state === "preparing")) {
    await wait(PREPARING_MS);
    const { releases } = await ask("/releases");
    const changed = releases.some((release) => release.pictures.state !== releaseOf(release.id)?.pictures.state);
    state.releases = releases;
    if (changed) draw();
  }
}

async function start() {
  try {
    ({ releases: state.releases } = await ask("/releases"));
  } catch (error) {
    $("headline").textContent = "This did not work";
    $("lead").textContent = error.message;
    return;
  }
  listen();
  drawIntro();
  recall();
  takeChosenFile(); // chosen while the releases were on their way
  if (matchMedia("(pointer: fine)").matches) $("query").focus(); // elsewhere a keyboard would cover the page
  followPictures().catch(() => {}); // the next search says that the server does not answer
}

start();
