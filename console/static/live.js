// A page that nobody looks at keeps no connection: a browser allows six to one server.
"use strict";
(() => {
  const sources = new Set();
  document.addEventListener("htmx:sseOpen", (event) => sources.add(event.detail.source));
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
