// The class: how phones join, for the teacher's screen. Only a server with --classroom has one.

import { element } from "./paint.js";
import { api } from "./source.js";
import { plural } from "./words.js";

const EVERY_MS = 5000;

/** Show the code and its picture, and call `there`; nothing where the server has no class. */
export async function showClass(panel, there) {
  try {
    const answer = await api(`class/code?origin=${encodeURIComponent(location.origin)}`);
    if (answer.status !== 200) return;
    const { code, address, picture, phones } = await answer.json();
    panel.querySelector(".caption").textContent = `${plural(phones, "phone")} joined`;
    if (panel.hidden) {
      const shown = new URL(address);
      panel.querySelector(".body").replaceChildren(
        element("img", { src: picture, alt: `QR code of ${address}`, width: 132, height: 132 }),
        element(
          "div",
          {},
          element("p.code", {}, code),
          element("p.address", {}, `${shown.host}${shown.pathname}`),
        ),
      );
      panel.hidden = false;
      there();
    }
  } catch {
    // the server is gone for a moment, which the page's head says
  }
  setTimeout(() => showClass(panel, there), EVERY_MS);
}
