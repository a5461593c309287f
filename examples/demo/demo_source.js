// A picture is read in the browser and sent with the question: no upload, no file on the server.
const $ = (query) => element.querySelector(query);
const box = $(".mf-source"), many = "many" in box.dataset, input = $("input"), hint = $(".mf-hint");
const preview = $(".mf-preview"), video = $(".mf-video"), empty = $(".mf-empty");
let stream = null;

const submit = (value) => { props.value = value; trigger("submit"); };
const show = (shown) => [preview, video, empty].forEach((one) => { one.hidden = one !== shown; });
const mark = (thumb) => element.querySelectorAll(".mf-thumb").forEach((one) =>
  one.setAttribute("aria-pressed", one === thumb));

function stopCamera() {
  if (stream) stream.getTracks().forEach((track) => track.stop());
  stream = null;
  const button = $('[data-do="camera"]');
  if (button) button.textContent = "Webcam";
}

const read = (file) => new Promise((done) => {
  const answer = { name: file.name || "pasted", bytes: file.size, data: "" };
  if (file.size > Number(box.dataset.bytes)) return done(answer);  // the server says so
  const reader = new FileReader();
  reader.onload = () => done({ ...answer, data: reader.result });
  reader.onerror = () => done(answer);
  reader.readAsDataURL(file);
});

async function take(files) {
  files = [...files];
  if (!files.length) return;
  stopCamera(); mark(null); hint.textContent = "";
  if (many) {
    let all = 0;
    const kept = files.slice(0, Number(box.dataset.most)).filter((file) => {
      all += file.size > Number(box.dataset.bytes) ? 0 : file.size;
      return all < Number(box.dataset.all);
    });
    if (kept.length < files.length) hint.textContent = `${files.length - kept.length} of ${files.length} are too many at once.`;
    return submit({ files: await Promise.all(kept.map(read)) });
  }
  const one = await read(files[0]);
  preview.onerror = () => show(empty);
  if (one.data) { preview.src = one.data; show(preview); } else show(empty);
  submit(one);
}

async function camera(button) {
  if (stream) {
    const canvas = document.createElement("canvas");
    canvas.width = video.videoWidth; canvas.height = video.videoHeight;
    canvas.getContext("2d").drawImage(video, 0, 0);
    const data = canvas.toDataURL("image/jpeg", 0.92);
    stopCamera(); mark(null);
    preview.src = data; show(preview);
    return submit({ name: "webcam", bytes: Math.round(data.length * 0.75), data });
  }
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 960 }, facingMode: "user" } });
    video.srcObject = stream; show(video); await video.play();
    button.textContent = "Take the picture"; hint.textContent = "";
  } catch (error) {
    stopCamera(); show(empty);
    hint.textContent = "The browser gave no camera: allow it for this page, or upload a picture.";
  }
}

element.addEventListener("click", (event) => {
  const thumb = event.target.closest("[data-example]"), button = event.target.closest("[data-do]");
  if (thumb) {
    stopCamera(); mark(thumb); hint.textContent = "";
    preview.src = thumb.querySelector("img").src; show(preview);
    submit({ example: thumb.dataset.example });
  } else if (button && button.dataset.do === "camera") camera(button);
  else if (button && button.dataset.do === "examples") submit({ examples: true });
  else if ((button && button.dataset.do === "choose") || (event.target.closest(".mf-drop") && !stream)) input.click();
});
input.addEventListener("change", () => { take(input.files); input.value = ""; });
["dragenter", "dragover"].forEach((kind) => element.addEventListener(kind, (event) => {
  event.preventDefault(); $(".mf-drop").classList.add("over");
}));
["dragleave", "drop"].forEach((kind) => element.addEventListener(kind, (event) => {
  event.preventDefault(); $(".mf-drop").classList.remove("over");
}));
element.addEventListener("drop", (event) => take(event.dataTransfer.files));
if (!many) document.addEventListener("paste", (event) => {
  if (event.clipboardData && event.clipboardData.files.length) take(event.clipboardData.files);
});
const first = $(".mf-thumb");
if (first) { mark(first); preview.src = first.querySelector("img").src; show(preview); }
