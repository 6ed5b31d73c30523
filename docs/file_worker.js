// A browser starts no worker on a page that is read from a file; the site's search then runs in a hidden frame instead.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(source) {
      super();
      this.waiting = [];
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      this.frame.addEventListener("load", () => {
        this.ready = true;
        this.waiting.forEach((message) => this.postMessage(message));
      });
      window.addEventListener("message", (event) => {
        if (event.source !== this.frame.contentWindow) return;
        const message = new MessageEvent("message", { data: event.data });
        this.dispatchEvent(message);
        this.onmessage?.(message);
      });
      const asWorker = `
        self.receive = (data) => self.dispatchEvent(new MessageEvent("message", { data }));
        self.postMessage = (data) => parent.postMessage(data, "*");
        self.importScripts = (...sources) => sources.forEach((source) => {
          document.write('<script src="' + source + '"></' + 'script>');
        });`;
      const address = new URL(source, location.href).href;
      this.frame.srcdoc = `<base href="${location.href}"><script>${asWorker}</` + `script><script src="${address}"></` + "script>";
      (document.body ?? document.documentElement).append(this.frame);
    }

    postMessage(data) {
      if (this.ready) this.frame.contentWindow.receive(data);
      else this.waiting.push(data);
    }

    terminate() {
      this.frame.remove();
    }
  };
}
