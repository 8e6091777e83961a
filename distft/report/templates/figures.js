"use strict";
// Draws the figures of the page. Texts and grids take their colours from the style sheet.
const figures = JSON.parse(document.getElementById("figures").textContent);
for (const figure of figures) {
  Plotly.newPlot(figure.id, figure.spec.data, figure.spec.layout, {
    responsive: true,
    displayModeBar: false,
    scrollZoom: false,
  });
}
let opened = [];
window.addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details:not([open])")];
  opened.forEach((box) => { box.open = true; });
  figures.forEach((figure) => Plotly.Plots.resize(figure.id));
});
window.addEventListener("afterprint", () => {
  opened.forEach((box) => { box.open = false; });
  figures.forEach((figure) => Plotly.Plots.resize(figure.id));
});
