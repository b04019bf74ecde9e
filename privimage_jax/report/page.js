"use strict";

// Galleries: one class can be chosen, and every image of a strip is a button that enlarges it. A strip is one stop of
// the Tab key; the arrow keys, Home and End move inside of it, also while an image is enlarged.

const STEPS = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity };
const enlarged = document.getElementById("enlarged");
let shown = null; // the button whose image is enlarged

function visibleButtons(strip) {
  return [...strip.querySelectorAll("button")].filter((button) => button.checkVisibility());
}

function neighbour(button, key) {
  const buttons = visibleButtons(button.parentElement);
  const place = buttons.indexOf(button) + STEPS[key];
  return buttons[Math.min(Math.max(place, 0), buttons.length - 1)];
}

function makeTabStop(button) {
  for (const other of button.parentElement.querySelectorAll("button")) {
    other.tabIndex = other === button ? 0 : -1;
  }
}

function enlarge(button) {
  const image = button.firstElementChild;
  const buttons = visibleButtons(button.parentElement);
  shown = button;
  makeTabStop(button);
  enlarged.querySelector(".picture").replaceChildren(image.cloneNode());
  enlarged.querySelector("p").textContent = `${image.alt} (${buttons.indexOf(button) + 1} of ${buttons.length})`;
  if (!enlarged.open) {
    enlarged.showModal();
  }
}

function onKey(event, current, go) {
  if (event.key in STEPS && !(event.altKey || event.ctrlKey || event.metaKey || event.shiftKey)) {
    event.preventDefault();
    go(neighbour(current, event.key));
  }
}

for (const strip of document.querySelectorAll(".strip")) {
  for (const image of strip.querySelectorAll("img")) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = image.className;
    button.tabIndex = -1;
    image.replaceWith(button);
    button.append(image);
  }
  strip.querySelector("button").tabIndex = 0;
  strip.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) {
      enlarge(button);
    }
  });
  strip.addEventListener("keydown", (event) => {
    onKey(event, event.target.closest("button"), (button) => {
      makeTabStop(button);
      button.focus();
    });
  });
}

enlarged.addEventListener("keydown", (event) => onKey(event, shown, enlarge));
enlarged.addEventListener("close", () => shown.focus());
enlarged.addEventListener("click", (event) => {
  const { key } = event.target.dataset;
  if (key in STEPS) {
    enlarge(neighbour(shown, key));
  } else if (key || event.target === enlarged) {
    enlarged.close(); // by its button, or by a click beside it
  }
});

for (const gallery of document.querySelectorAll(".gallery")) {
  const filter = gallery.querySelector(".filter");
  if (filter) {
    const choice = filter.querySelector("select");
    const choose = () => {
      gallery.classList.toggle("one", choice.value !== "");
      for (const figure of gallery.querySelectorAll("figure")) {
        figure.hidden = choice.value !== "" && choice.value !== figure.dataset.class;
      }
      for (const strip of gallery.querySelectorAll(".strip")) {
        makeTabStop(strip.querySelector("button"));
      }
    };
    filter.hidden = false;
    choice.addEventListener("change", choose);
    choose(); // a browser may remember a choice
  }
}
