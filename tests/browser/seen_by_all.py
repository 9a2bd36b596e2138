"""Asking a page whether everybody can use it: axe-core, targets, contrast, width.

axe-core (MPL-2.0) comes with the wheel axe-playwright-python; only its script is used, and it runs
in the page: nothing is fetched.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
SMALLEST_TARGET = 24  # px, as WCAG 2.2 asks
LEAST_CONTRAST = 4.5

# What can be pressed and is smaller than it should be; links within a sentence are exempt.
_SMALL_TARGETS = """(smallest) => [...document.querySelectorAll(
    'a[href], button, input:not([type=file]), select, textarea, summary, label.quiet-button')]
  .filter((element) => element.checkVisibility({ visibilityProperty: true }))
  .filter((element) => !(element.matches('a') && element.closest('p, li, td, dd')))
  .map((element) => [element, element.getBoundingClientRect()])
  .filter(([, box]) => box.width && (box.width < smallest - 0.1 || box.height < smallest - 0.1))
  .map(([element, box]) => `${element.outerHTML.slice(0, 90)} ${box.width} × ${box.height}`)"""

# Every text against everything that lies under it, both painted: so any notation is understood.
_LOW_CONTRAST = """(least) => {
  const canvas = Object.assign(document.createElement('canvas'), { width: 1, height: 1 });
  const context = canvas.getContext('2d', { willReadFrequently: true });
  const painted = (layers) => {
    context.fillStyle = '#fff';
    context.fillRect(0, 0, 1, 1);
    for (const layer of layers) { context.fillStyle = layer; context.fillRect(0, 0, 1, 1); }
    return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const luminance = (rgb) => rgb.map((part) => part / 255)
    .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
    .reduce((sum, part, i) => sum + part * [0.2126, 0.7152, 0.0722][i], 0);
  const ratio = (one, other) => {
    const [high, low] = [luminance(one), luminance(other)].sort((a, b) => b - a);
    return (high + 0.05) / (low + 0.05);
  };
  const colour = /(?:rgba?|hsla?|oklch|oklab|lch|lab|color)\\([^()]*\\)|#[0-9a-f]{3,8}/gi;
  const found = [];
  for (const element of document.querySelectorAll('body *')) {
    const text = [...element.childNodes].filter((node) => node.nodeType === 3)
      .map((node) => node.textContent.trim()).join('');
    if (!text || !element.checkVisibility({ visibilityProperty: true })) continue;
    if (!element.getBoundingClientRect().width) continue;
    const style = getComputedStyle(element);
    const inSvg = element instanceof SVGElement;
    let under = [[]]; // one list of layers for each stop of a gradient
    for (let over = element; over; over = over.parentElement) {
      const its = getComputedStyle(over);
      if (!(over instanceof SVGElement)) {
        const stops = its.backgroundImage.match(colour);
        const plain = its.backgroundColor;
        under = stops
          ? under.flatMap((layers) => stops.map((stop) => [plain, stop, ...layers]))
          : under.map((layers) => [plain, ...layers]);
      }
    }
    if (inSvg) {
      // what the shapes before it in its drawing paint there
      const box = element.getBoundingClientRect();
      const middle = [box.x + box.width / 2, box.y + box.height / 2];
      const shapes = element.ownerSVGElement?.querySelectorAll('rect, circle, path, polygon');
      for (const shape of shapes ?? []) {
        if (!(shape.compareDocumentPosition(element) & Node.DOCUMENT_POSITION_FOLLOWING)) continue;
        const its = shape.getBoundingClientRect();
        const beside = middle[0] < its.left || middle[0] > its.right;
        if (beside || middle[1] < its.top || middle[1] > its.bottom) continue;
        const paint = getComputedStyle(shape).fill;
        if (paint !== 'none') under = under.map((layers) => [...layers, paint]);
      }
    }
    const worst = Math.min(...under.map((layers) =>
      ratio(painted([...layers, inSvg ? style.fill : style.color]), painted(layers))));
    const px = parseFloat(style.fontSize);
    const large = px >= 24 || (px >= 18.66 && style.fontWeight >= 700);
    if (worst < (large ? 3 : least) && !element.closest(':disabled')) {
      const which = `${element.tagName}.${element.getAttribute('class') ?? ''}`;
      found.push(`${worst.toFixed(2)} ${which} “${text.slice(0, 40)}”`);
    }
  }
  return found;
}"""


def axe_source() -> Path | None:
    """The script of axe-core, if it is installed."""
    found = find_spec("axe_playwright_python")
    if found is None or found.origin is None:
        return None
    script = Path(found.origin).with_name("axe.min.js")
    return script if script.is_file() else None


def violations(page, source: str) -> list[str]:
    """What axe-core finds serious or critical, one line for each element."""
    page.evaluate(f"{source}; undefined")
    found = page.evaluate(
        "(tags) => axe.run(document, { runOnly: tags, resultTypes: ['violations'] })", RULES
    )
    return [
        f"{rule['impact']}: {rule['id']}: {node['html'][:110]}"
        for rule in found["violations"]
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"]
    ]


def small_targets(page) -> list[str]:
    return page.evaluate(_SMALL_TARGETS, SMALLEST_TARGET)


def low_contrast(page) -> list[str]:
    return page.evaluate(_LOW_CONTRAST, LEAST_CONTRAST)


def overflow(page) -> int:
    """Pixels by which the page is wider than its window."""
    return page.evaluate("document.documentElement.scrollWidth - innerWidth")


_SMALL_TEXTS = """(least) => [...document.querySelectorAll('body *')]
  .filter((e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim()))
  .filter((e) => e.checkVisibility({ visibilityProperty: true }) && e.getBoundingClientRect().width)
  .filter((e) => parseFloat(getComputedStyle(e).fontSize) < least)
  .map((e) => e.outerHTML.slice(0, 100))"""


def small_texts(page, least: int) -> list[str]:
    """Texts that are smaller than so many px."""
    return page.evaluate(_SMALL_TEXTS, least)
