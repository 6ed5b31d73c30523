// What tests measure on a page in the browser (tests/browser.py).
({
  // What is cut off, wider than the window, or outside of its chart; tables may scroll, with their first column in place.
  cut() {
    const found = [];
    const width = document.documentElement.clientWidth;
    const whole = document.documentElement.scrollWidth;
    if (whole > width) found.push(`the page is ${whole} wide`);
    const name = (e) => `${e.tagName.toLowerCase()} '${e.textContent.trim().slice(0, 30)}'`;
    for (const e of document.querySelectorAll("main *, nav *, dialog[open] *")) {
      if (e.closest(".wide") && !e.matches(".wide")) continue;
      if (e.closest("noscript, script, style, defs, .skip") || !e.getClientRects().length) continue;
      const box = e.getBoundingClientRect();
      if (box.width && (box.right > width + 1 || box.left < -1)) found.push(`${name(e)}: ${box.left} to ${box.right}`);
      const chart = e.tagName === "text" && e.closest("svg.chart");
      if (chart) {
        const edge = chart.getBoundingClientRect();
        const across = box.left < edge.left - 2 || box.right > edge.right + 2;
        if (across || box.top < edge.top - 2 || box.bottom > edge.bottom + 2)
          found.push(`${name(e)} stands out of its chart '${chart.querySelector(".title").textContent}'`);
      }
      const style = getComputedStyle(e);
      if (style.overflowX === "hidden" && e.scrollWidth > e.clientWidth + 1) found.push(`${name(e)}: hidden`);
    }
    for (const e of document.querySelectorAll(".wide")) {
      const first = e.querySelector("tbody td");
      if (!first) continue;
      const before = first.getBoundingClientRect().left;
      e.scrollLeft = 60;
      if (Math.abs(first.getBoundingClientRect().left - before) > 1) found.push("a first column scrolls away");
      e.scrollLeft = 0;
    }
    return found;
  },

  // Texts below WCAG 2 AA (4.5, or 3 where they are large), and colours of lines below 3.
  faint() {
    const parse = (text) => (text.match(/[\d.]+/g) ?? []).map(Number);
    const light = ([r, g, b]) => {
      const [x, y, z] = [r, g, b].map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
      return 0.2126 * x + 0.7152 * y + 0.0722 * z;
    };
    const behind = (e) => {
      for (; e; e = e.parentElement) {
        const colour = parse(getComputedStyle(e).backgroundColor);
        if (colour.length === 3 || colour[3] === 1) return colour;
      }
      return [255, 255, 255];
    };
    const found = {};
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
      const e = walker.currentNode.parentElement;
      if (!walker.currentNode.textContent.trim() || !e.getClientRects().length) continue;
      if (e.closest("script, style, noscript, .skip")) continue;
      if (e.hasAttribute("style") && e.tagName === "text") continue;
      const style = getComputedStyle(e);
      const [a, b] = [light(parse(e.closest("svg") ? style.fill : style.color)), light(behind(e))];
      const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
      const big = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.66 && style.fontWeight >= 700);
      if (ratio < (big ? 3 : 4.5)) found[`${e.tagName}.${e.className.baseVal ?? e.className}: ${ratio.toFixed(2)}`] = 1;
    }
    const sample = (css) => {
      const e = document.createElement("i");
      e.style.color = `var(--${css})`;
      document.body.append(e);
      const colour = parse(getComputedStyle(e).color);
      e.remove();
      return light(colour);
    };
    const paper = sample("paper");
    for (const css of ["s0", "s1", "s2", "s3", "s4", "s5", "edge", "here"]) {
      const ratio = (Math.max(sample(css), paper) + 0.05) / (Math.min(sample(css), paper) + 0.05);
      if (ratio < 3) found[`--${css}: ${ratio.toFixed(2)}`] = 1;
    }
    return Object.keys(found);
  },

  // Numbers of the elements that keys have to reach, written on them.
  reachable() {
    return [...document.querySelectorAll(
      'a[href], button, summary, input:not([disabled]), canvas[tabindex], svg[tabindex], .wide')]
      .filter((e) => e.checkVisibility() && !(e.type === "radio" && !e.checked))
      .map((e, i) => (e.dataset.stop = i));
  },

  // The number of the element that has the focus.
  stop() {
    return document.activeElement?.dataset?.stop ?? null;
  },
})
