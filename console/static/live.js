// A page that nobody looks at keeps no connection: a browser allows six to one server.
"use strict";
(() => {
  const sources = new Set();
  const PATIENCE_MS = 4000;
  let waiting = null;

  function answered(yes) {
    clearTimeout(waiting);
    waiting = null;
    document.querySelector(".away").hidden = yes;
  }

  document.addEventListener("htmx:sseOpen", (event) => {
    sources.add(event.detail.source);
    answered(true);
  });
  document.addEventListener("htmx:sseError", () => {
    if (!document.hidden) waiting ??= setTimeout(() => answered(false), PATIENCE_MS);
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
        source.onerror(new Event("error")); // the extension opens another one
      }
    }
  });
})();
