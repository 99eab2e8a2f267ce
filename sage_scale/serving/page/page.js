"use strict";
// Texts of models and users enter by textContent alone.
const at = (id) => document.getElementById(id);
const made = (tag, text = "", more = {}) => Object.assign(document.createElement(tag), { textContent: text }, more);
const query = (values) => new URLSearchParams(values).toString();
let limits = null, camera = null, recorder = null, running = false, stop = 0;

async function start() {
  try {
    const about = await (await fetch("api/model")).json();
    if (about.detail) throw new Error(about.detail);
    limits = about.limits;
    at("trained").textContent = about.trained_on;
    at("limits").textContent = `At most ${limits.megabytes} MB, ${limits.seconds} s, ${limits.side} pixels a side.`;
    at("language").replaceChildren(...about.languages.map((tag) => made("option", tag, { value: tag })));
    at("languages").hidden = about.languages.length < 2;
  } catch (error) {
    fail(error.message);
  }
}

function fail(line) {
  at("error").textContent = line;
  at("status").textContent = "";
}

async function translate(file) {
  if (running) return;
  at("error").textContent = "";
  at("result").hidden = true;
  if (limits && file.size > limits.megabytes * 1e6) return fail(`The file is larger than ${limits.megabytes} MB.`);
  show(file);
  running = true;
  for (const id of ["file", "record"]) at(id).disabled = true;
  at("progress").hidden = false;
  at("status").textContent = "Uploading, cutting into segments and translating …";
  try {
    const language = at("languages").hidden ? {} : { language: at("language").value };
    const response = await fetch("api/translate?" + query(language), { method: "POST", body: file });
    const answer = await response.json().catch(() => ({ detail: `the server answered ${response.status}` }));
    if (!response.ok) fail(typeof answer.detail === "string" ? answer.detail : "the request was refused");
    else draw(answer);
  } catch {
    fail("The server does not answer, or ended the upload.");
  } finally {
    running = false;
    document.body.dataset.answers = String(Number(document.body.dataset.answers || 0) + 1);
    for (const id of ["file", "record"]) at(id).disabled = false;
    at("progress").hidden = true;
  }
}

function show(file) {
  const video = at("video");
  if (video.src) URL.revokeObjectURL(video.src);
  video.srcObject = null;
  video.src = URL.createObjectURL(file);
  video.hidden = false;
  stop = 0;
}

function play(start, end) {
  const video = at("video");
  stop = end;
  video.currentTime = start;
  video.play().catch(() => {});
}

at("video").addEventListener("timeupdate", () => {
  if (stop && at("video").currentTime >= stop) { at("video").pause(); stop = 0; }
});

function draw(answer) {
  const total = answer.frames / answer.fps;
  at("sentence").textContent = answer.sentence || "(no words)";
  at("sentence").lang = answer.language;
  at("score").textContent = answer.score === null ? "" :
    `Score ${answer.score.toFixed(2)}` + (answer.percentile === null ? "" : `, higher than ${Math.round(answer.percentile)}% of dev sentences`);
  at("warnings").replaceChildren(...answer.warnings.map((line) => made("li", line)));
  at("candidates").replaceChildren(...answer.candidates.slice(1).map((other) =>
    made("li", other.sentence + (other.score === null ? "" : ` (${other.score.toFixed(2)})`), { lang: answer.language })));
  download("vtt", answer.captions.vtt, "text/vtt");
  download("srt", answer.captions.srt, "text/plain");
  const { pictures, captions, ...rest } = answer;
  download("json", JSON.stringify(rest, null, 1), "application/json");
  at("result").hidden = false;
  timeline(answer, total);
  words(answer);
  const spent = Object.values(answer.stages_s).reduce((sum, one) => sum + one, 0);
  at("status").textContent = `${answer.segments_s.length} segments; translated in ${spent.toFixed(1)} s.`;
  at("sentence").focus();
}

function timeline(answer, total) {
  const place = (item, [start, end]) => {
    item.style.left = `${100 * start / total}%`;
    item.style.width = `${100 * (end - start) / total}%`;
    return item;
  };
  // Pictures are as far apart as they are wide.
  const apart = 84 / Math.max(at("timeline").clientWidth, 84);
  let free = -1;
  const items = answer.segments_s.map(([start, end], number) => {
    const item = place(made("li"), [start, end]);
    const bar = made("button", String(number + 1), { type: "button" });
    bar.setAttribute("aria-label", `Segment ${number + 1}, ${start.toFixed(2)} to ${end.toFixed(2)} seconds`);
    bar.setAttribute("aria-pressed", "false");
    bar.addEventListener("click", () => {
      for (const other of at("timeline").querySelectorAll("button")) other.setAttribute("aria-pressed", String(other === bar));
      play(start, end);
    });
    const middle = (start + end) / 2 / total;
    if (answer.pictures[number] && middle - free > apart) {
      item.append(made("img", "", { src: answer.pictures[number], alt: "" }));
      free = middle;
    }
    item.append(made("span", "", { className: "heat" }), bar);
    return item;
  });
  const rests = answer.rests_s.map((rest) => {
    const item = place(made("li", "", { className: "rest" }), rest);
    item.setAttribute("aria-label", `Rest, ${rest[0].toFixed(2)} to ${rest[1].toFixed(2)} seconds`);
    return item;
  });
  at("timeline").replaceChildren(...items, ...rests);
  at("rests").textContent = answer.rests_s.length ? "Hatched: rests at the ends, without a sign." : "";
}

function words(answer) {
  at("words-part").hidden = !answer.alignment;
  at("word-note").textContent = "";
  if (!answer.alignment) return;
  const heats = [...at("timeline").querySelectorAll(".heat")];
  at("words").lang = answer.language;
  at("words").replaceChildren(...answer.alignment.words.map((word, number) => {
    const weights = answer.alignment.weights_WN[number];
    const most = Math.max(...weights);
    const button = made("button", word, { type: "button" });
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => {
      for (const other of at("words").children) other.setAttribute("aria-pressed", String(other === button));
      heats.forEach((heat, segment) => { heat.style.opacity = most > 0 ? weights[segment] / most : 0; });
      const best = weights.map((weight, segment) => [weight, segment + 1]).sort((a, b) => b[0] - a[0]).slice(0, 3).filter(([weight]) => weight > 0);
      at("word-note").textContent = best.length
        ? `“${word}” depends most on segment ${best.map(([weight, segment]) => `${segment} (${weight.toFixed(2)})`).join(", ")}.`
        : `“${word}” depends on no single segment.`;
    });
    return button;
  }));
}

function download(id, text, type) {
  const link = at(id);
  if (link.href) URL.revokeObjectURL(link.href);
  link.href = URL.createObjectURL(new Blob([text], { type }));
}

at("file").addEventListener("change", () => {
  const file = at("file").files[0];
  at("file").value = "";
  if (file) translate(file);
});
for (const name of ["dragover", "drop", "dragleave"]) {
  at("drop").addEventListener(name, (event) => {
    event.preventDefault();
    at("drop").classList.toggle("over", name === "dragover");
    if (name === "drop" && event.dataTransfer.files[0]) translate(event.dataTransfer.files[0]);
  });
}

at("camera").addEventListener("click", async () => {
  if (camera) return closeCamera();
  try {
    camera = await navigator.mediaDevices.getUserMedia({ video: true });
  } catch (error) {
    return fail(`The camera cannot be used: ${error.message}`);
  }
  const video = at("video");
  video.srcObject = camera;
  video.hidden = false;
  video.play().catch(() => {});
  at("camera").textContent = "Close the camera";
  at("record").hidden = false;
  at("record").focus();
});

function closeCamera() {
  if (camera) for (const track of camera.getTracks()) track.stop();
  camera = null;
  at("camera").textContent = "Use the camera";
  at("record").hidden = true;
}

at("record").addEventListener("click", () => {
  if (recorder) return recorder.stop();
  const parts = [];
  recorder = new MediaRecorder(camera);
  recorder.ondataavailable = (event) => parts.push(event.data);
  recorder.onstop = () => {
    const type = recorder.mimeType;
    recorder = null;
    at("record").textContent = "Record";
    closeCamera();
    translate(new Blob(parts, { type }));
  };
  recorder.start();
  at("record").textContent = "Stop and translate";
  at("status").textContent = "Recording …";
});

start();
