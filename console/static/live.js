// A page that nobody looks at keeps no connection: a browser allows six to one server.
"use strict";
(() => {
  const sources = new Set();
  const PATIENCE_MS = 4000;
  let waiting = null;

  const [away, gone] = document.querySelectorAll(".away");

  // The extension hands what its handler is called with to htmx, which writes it to the browser's
  // log as an error. That a stream ends is none: this page says it where it matters.
  class Stream extends EventSource {
    get onerror() { return super.onerror; }
    set onerror(handler) { super.onerror = () => handler(); }
  }
  htmx.createEventSource = (url) => new Stream(url);

  function answered() {
    clearTimeout(waiting);
    waiting = null;
    away.hidden = gone.hidden = true;
  }

  async function silent() { // either nobody answers, or this page is no more
    const found = await fetch(location.href).catch(() => null);
    if (!waiting) return; // there it is again
    gone.hidden = found?.status !== 404;
    away.hidden = !gone.hidden;
    waiting = null;
  }

  document.addEventListener("htmx:sseOpen", (event) => {
    sources.add(event.detail.source);
    answered();
  });
  document.addEventListener("htmx:sseError", () => {
    if (!document.hidden) waiting ??= setTimeout(silent, PATIENCE_MS);
  });
  document.addEventListener("htmx:responseError", (event) => {
    const {status} = event.detail.xhr;
    alert(status === 401 || status === 403 ? "This asks for the admin token: log out, and log in with it." : `That did not work (${status}).`);
  });
  document.addEventListener("visibilitychange", () => {
    for (const source of sources) {
      if (document.hidden) source.close();
      else {
        sources.delete(source);
        source.onerror(); // the extension opens another one
      }
    }
  });
})();
