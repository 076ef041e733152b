// layout looks at a page whose content does not change, and returns a function
// that says what is wrong with how it is laid out at the present width: what is
// cut, what lies over something else, what hangs over the edge of its place.
function layout(document) {
	const window = document.defaultView;
	// What is not on the screen is laid out all the same.
	document.styleSheets[0].insertRule(".service, #news li { content-visibility: visible !important }", document.styleSheets[0].cssRules.length);

	const words = (e) => {
		const text = (e.getAttribute("aria-label") || e.textContent).trim().slice(0, 40);
		return e.tagName.toLowerCase() + "." + (e.className.baseVal ?? e.className) + " in " + e.parentElement.tagName.toLowerCase() + "." + e.parentElement.className + " “" + text + "”";
	};
	/** clips says whether an element lets nothing be seen outside of it. */
	const clips = new Map();
	for (const e of document.body.querySelectorAll("*")) {
		if (window.getComputedStyle(e).overflow !== "visible" && !(e instanceof window.SVGElement)) clips.set(e, null);
	}
	// What there is to see: texts, and what can be clicked or stands for a number.
	const things = [];
	for (const e of document.body.querySelectorAll("*")) {
		if (e.closest("dialog, .unseen, .skip, noscript, thead")) continue;
		const texts = [...e.childNodes].filter((n) => n.nodeType === 3 && n.data.trim()).map((n) => {
			const range = document.createRange();
			range.selectNodeContents(n);
			return range;
		});
		const box = e.matches("button, input, i, svg");
		if (!texts.length && !box) continue;
		const around = [];
		for (let a = box ? e.parentElement : e; a; a = a.parentElement) if (clips.has(a)) around.push(a);
		things.push({
			e, texts, box, around, home: e.closest(".row, .detail > div, .written, aside, header, .tools"),
			clamped: window.getComputedStyle(e).webkitLineClamp !== "none",
		});
	}

	return () => {
		const wrong = new Set();
		const width = document.documentElement.clientWidth;
		if (document.documentElement.scrollWidth > width) wrong.add("the page is wider than the window");
		for (const e of clips.keys()) clips.set(e, e.getBoundingClientRect());
		const homes = new Map();
		const boxes = [];
		for (const { e, texts, box, around, home, clamped } of things) {
			if (!e.checkVisibility()) continue;
			if (!box && e.clientWidth > 0 && e.scrollWidth > e.clientWidth + 1) wrong.add("cut: " + words(e));
			if (clamped && e.scrollHeight > e.clientHeight + 1 && e.title !== e.textContent) wrong.add("its end is nowhere: " + words(e));
			// The lines of a text touch each other where its letters do not.
			const rects = texts.flatMap((t) => [...t.getClientRects()].map((r) => ({ left: r.left, right: r.right, top: r.top + 2, bottom: r.bottom - 2 })));
			if (box) rects.push(e.getBoundingClientRect());
			for (let { left, right, top, bottom } of rects) {
				if (left < -0.5 || right > width + 0.5) wrong.add("beyond the window: " + words(e));
				for (const a of around) {
					const c = clips.get(a);
					left = Math.max(left, c.left); top = Math.max(top, c.top);
					right = Math.min(right, c.right); bottom = Math.min(bottom, c.bottom);
				}
				if (right - left <= 1 || bottom - top <= 1) continue;
				if (home) {
					if (!homes.has(home)) homes.set(home, home.getBoundingClientRect());
					const h = homes.get(home);
					if (left < h.left - 0.5 || right > h.right + 0.5 || top < h.top - 0.5 || bottom > h.bottom + 0.5) wrong.add("hangs over its place: " + words(e));
				}
				boxes.push({ e, left, right, top, bottom });
			}
		}
		boxes.sort((a, b) => a.top - b.top);
		for (let i = 0; i < boxes.length; i++) {
			const a = boxes[i];
			for (let k = i + 1; k < boxes.length && boxes[k].top < a.bottom - 0.5; k++) {
				const b = boxes[k];
				if (a.left < b.right - 0.5 && b.left < a.right - 0.5 && !a.e.contains(b.e) && !b.e.contains(a.e)) wrong.add("overlap: " + words(a.e) + " and " + words(b.e));
			}
		}
		return [...wrong];
	};
}
