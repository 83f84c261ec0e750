/* Browsers start no worker from a file. Pages opened without a server run the search in a hidden
   frame instead, which offers what the search uses of a worker. */
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.body.appendChild(this.frame);
      this.waiting = [];
      window.addEventListener("message", (event) => {
        if (event.source !== this.frame.contentWindow) return;
        this.dispatchEvent(new MessageEvent("message", { data: event.data }));
        if (this.onmessage) this.onmessage(event);
      });
      window.__importScript = (document_, address) =>
        new Promise((done) => {
          const script = document_.createElement("script");
          script.src = address;
          script.onload = done;
          document_.body.appendChild(script);
        });
      const page = this.frame.contentWindow.document;
      page.open();
      page.write(`<body><script>
        var postMessage = parent.postMessage.bind(parent);
        var importScripts = (...urls) => urls.reduce(
          (before, url) => before.then(() => parent.__importScript(document, url)), Promise.resolve());
      <\/script><script src="${url}"><\/script></body>`);
      page.close();
      this.frame.onload = () => {
        this.ready = true;
        for (const message of this.waiting) this.postMessage(message);
      };
    }
    postMessage(message) {
      if (!this.ready) { this.waiting.push(message); return; }
      this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data: message }));
    }
    terminate() { this.frame.remove(); }
  };
}
