"use strict";

// Unpacks plotly from the page itself and draws every chart; nothing is fetched.
async function draw() {
  const specs = document.getElementById("specs");
  if (!specs) return;
  const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const code = document.createElement("script");
  code.nonce = document.currentScript?.nonce || document.querySelector("script[nonce]").nonce;
  code.textContent = await new Response(stream).text();
  document.head.append(code);
  for (const [id, figure] of Object.entries(JSON.parse(specs.textContent))) {
    const config = { responsive: true, displayModeBar: false };
    await Plotly.newPlot(id, figure.data, figure.layout, config);
  }
}

draw().catch((error) => {
  for (const chart of document.querySelectorAll(".chart")) {
    chart.textContent = `This browser could not draw the chart (${error}); the tables hold the same numbers.`;
    chart.style.minHeight = "0";
  }
});

for (const button of document.querySelectorAll("button[data-copies]")) {
  button.addEventListener("click", async () => {
    const source = document.getElementById(button.dataset.copies);
    getSelection().selectAllChildren(source);
    await navigator.clipboard?.writeText(source.textContent);
    button.textContent = navigator.clipboard ? "Copied" : "Selected";
  });
}

// Paper has no folds.
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((fold) => (fold.open = true)));
