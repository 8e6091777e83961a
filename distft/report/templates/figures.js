"use strict";
// Draws the figures of the page. Texts and grids take their colours from the style sheet.
const figures = JSON.parse(document.getElementById("figures").textContent);
for (const figure of figures) {
  const box = document.getElementById(figure.id);
  Plotly.newPlot(box, figure.spec.data, figure.spec.layout, { displayModeBar: false });
  new ResizeObserver(() => Plotly.Plots.resize(box)).observe(box);
}
let opened = [];
window.addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details:not([open])")];
  opened.forEach((box) => { box.open = true; });
});
window.addEventListener("afterprint", () => {
  opened.forEach((box) => { box.open = false; });
});
