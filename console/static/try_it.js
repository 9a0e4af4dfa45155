// A picture that is dropped, pasted or chosen; what comes back is drawn.
"use strict";
(() => {
  const drop = document.getElementById("drop");
  const input = document.getElementById("image");
  const preview = document.getElementById("preview");
  if (!drop) return;

  function show() {
    const [file] = input.files;
    document.getElementById("name").value = file?.name ?? "";
    preview.hidden = !file;
    if (!file) return;
    const reader = new FileReader(); // data: is allowed by the page's policy, blob: is not
    reader.addEventListener("load", () => (preview.src = reader.result));
    reader.readAsDataURL(file);
  }

  function take(files) {
    const picture = [...files].find((file) => file.type.startsWith("image/"));
    if (!picture) return false;
    const one = new DataTransfer();
    one.items.add(picture);
    input.files = one.files;
    show();
    return true;
  }

  input.addEventListener("change", show);
  for (const [event, over] of [["dragover", true], ["dragleave", false], ["drop", false]]) {
    document.addEventListener(event, (e) => {
      e.preventDefault();
      drop.classList.toggle("over", over);
      if (event === "drop") take(e.dataTransfer.files);
    });
  }
  document.addEventListener("paste", (event) => take(event.clipboardData.files) && event.preventDefault());

  const result = document.getElementById("result");
  document.addEventListener("htmx:afterSwap", (event) => {
    const place = document.getElementById("drawn");
    if (event.detail.target === result && place) drawChosen(place);
  });
  function say(text) {
    const item = html("li", { class: "bad" }, text);
    result.replaceChildren(html("ul", { class: "notes" }, item));
  }
  document.addEventListener("htmx:responseError", (event) => {
    const { status } = event.detail.xhr;
    say(status === 413 ? "The picture is too large: send one under 15 MB." : `The console could not ask (${status}).`);
  });
  document.addEventListener("htmx:sendError", () => say("The console does not answer: is it still running?"));
})();
