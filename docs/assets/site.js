// Loads what a page needs of the scripts that `make docs` puts beside it: nothing comes from elsewhere.

const assets = new URL(".", document.currentScript.src);

function load(name) {
  return new Promise((done, failed) => {
    const script = document.createElement("script");
    script.src = new URL(name, assets);
    script.onload = done;
    script.onerror = failed;
    document.head.append(script);
  });
}

// The theme draws diagrams with this object, and fetches one from the network where there is none.
let settings;
let drawing;
window.mermaid = {
  initialize(given) {
    settings = given;
  },
  async render(...diagram) {
    const stub = window.mermaid;
    drawing ??= load("mermaid.tiny.js").then(() => {
      const loaded = window.mermaid;
      window.mermaid = stub;
      // On a phone a diagram keeps its size, and scrolls.
      loaded.initialize({ ...settings, flowchart: { useMaxWidth: window.innerWidth > 700 } });
      return loaded;
    });
    return (await drawing).render(...diagram);
  },
};

// Equations: arithmatex writes them as \(...\) and \[...\].
document$.subscribe(async ({ body }) => {
  const equations = body.querySelectorAll(".arithmatex");
  if (!equations.length) return;
  await (window.katex || load("katex.min.js"));
  for (const equation of equations) {
    const tex = equation.textContent.trim();
    window.katex.render(tex.slice(2, -2), equation, { displayMode: tex.startsWith("\\[") });
  }
});
