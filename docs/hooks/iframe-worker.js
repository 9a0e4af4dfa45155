/* The search is a worker, and a browser starts none from file://. There it runs in a hidden frame, so
   that it works in a site that is a folder on a disk. The offline plugin would load such a script from
   another host if it found none of this name. */
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.append(frame)
      const inner = frame.contentWindow
      this.send = inner.postMessage.bind(inner)
      inner.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
      const script = inner.document.createElement("script")
      this.loaded = new Promise(done => script.addEventListener("load", done))
      script.src = new URL(url, location.href)
      inner.document.body.append(script)
    }
    postMessage(data) {
      this.loaded.then(() => this.send(data, "*"))
    }
  }
}
