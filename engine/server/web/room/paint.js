// Drawing: colours that follow the theme, canvases that are sharp on every screen, small DOM helpers.

let palette = null;

/** The theme's colours, read from the style sheet once after each change of theme. */
export function colours() {
  if (!palette) {
    const style = getComputedStyle(document.documentElement);
    const read = (name) => style.getPropertyValue(`--${name}`).trim();
    palette = Object.fromEntries(
      [
        "ink",
        "ink-2",
        "ink-3",
        "line",
        "line-2",
        "surface",
        "sunken",
        "accent",
        "empty",
        "kept",
        "waiting",
        "preempted",
        "swapped",
        "cached",
      ].map((name) => [name, read(name)]),
    );
    palette.lightness = read("owner-lightness");
    palette.chroma = read("owner-chroma");
    palette.owners = new Map();
  }
  return palette;
}

export function forgetColours() {
  palette = null;
}

/** A sequence's colour; `strength` 0…1 mixes it with the surface. */
export function ownerColour(hue, strength = 1) {
  const all = colours();
  if (hue === null) return all["ink-3"]; // nobody's
  const name = hue * 8 + strength;
  let colour = all.owners.get(name);
  if (!colour) {
    colour = `oklch(${all.lightness} ${all.chroma} ${hue.toFixed(1)} / ${strength})`;
    all.owners.set(name, colour);
  }
  return colour;
}

/** Size a canvas to its box, in device pixels. Returns its context, scaled to CSS pixels; `changed`
 *  says whether it was cleared by that. */
export function fit(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  const wide = Math.round(width * ratio), high = Math.round(height * ratio);
  const changed = canvas.width !== wide || canvas.height !== high;
  if (changed) {
    canvas.width = wide;
    canvas.height = high;
    canvas.style.height = `${height}px`;
  }
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  return { context, changed };
}

/** element("button.quiet", {title: "…", onclick}, "text", child, …) */
export function element(what, options = {}, ...children) {
  const [tag, ...classes] = what.split(".");
  const made = document.createElement(tag);
  if (classes.length) made.className = classes.join(" ");
  for (const [name, value] of Object.entries(options)) {
    if (name in made && name !== "list") made[name] = value;
    else if (name === "style") made.style.cssText = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** A sequence's name as a small button in its colour. */
export function chip(room, name, text = "") {
  const life = room.ledger.life(name);
  const made = element(
    "button.chip",
    { type: "button", title: name, onclick: () => room.select({ request: name }) },
    text || life.label,
  );
  made.style.setProperty("--owner", ownerColour(life.hue));
  made.setAttribute("aria-pressed", String(room.selection.request === name));
  return made;
}
