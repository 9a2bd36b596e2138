// A browser loads no modules from a folder. Whoever opens index.html there reads what to do instead.
// (Not a module, so that it is loaded.)

if (location.protocol === "file:") {
  document.querySelector("#status").dataset.state = "off";
  document.querySelector("#status b").textContent = "opened from a folder";
  document.querySelector("#notice span").textContent =
    "A browser loads no modules from a folder, so this page can't start here." +
    " For a recorded file, make one page that holds both, and open that: python -m engine.trace page FILE -o room.html";
  document.querySelector("#notice").hidden = false;
}
