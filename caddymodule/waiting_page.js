(() => {
	"use strict";
	const refresh = 1000 * Number(document.currentScript.dataset.refresh);
	const all = (name) => document.querySelectorAll(`[data-usher="${name}"]`);

	// The address of the page itself, which says who it is by a header.
	const address = new URL(location.href);
	address.username = address.password = address.hash = "";

	const loaded = new Promise((resolve) => {
		if (document.readyState === "complete") resolve();
		else addEventListener("load", () => setTimeout(resolve), { once: true });
	});

	let gone = false, wrong = false;
	let reading = new AbortController();

	// Loads what was asked for: the same URL once more, with its fragment.
	function arrive() {
		if (gone) return;
		gone = true;
		reading.abort();
		if (!location.hash) return location.reload();
		// A reload would stay where this page was scrolled to, and not go to
		// the fragment; and to go from a URL to itself with a fragment only
		// scrolls. So for a moment the page has another address.
		const wanted = location.href;
		// It is an absolute one: a path that begins with `//` alone would name
		// another host.
		const other = new URL(wanted);
		other.hash = "";
		other.search += other.search ? "&" : "?_";
		history.replaceState(null, "", other);
		location.replace(wanted);
	}

	// Bars show how much of the usual time has passed, and never that all has.
	let from = performance.now(), usual = 0;
	function move() {
		const part = usual ? 0.94 * (1 - Math.exp(-1.9 * (performance.now() - from) / usual)) : 0;
		for (const bar of all("progress")) {
			if (usual) {
				bar.max = 1;
				bar.value = part;
			} else {
				bar.removeAttribute("value");
			}
		}
	}

	function show(state) {
		for (const name of ["status", "detail", "reason", "place"]) {
			for (const element of all(name)) {
				const text = state[name] || "";
				if (element.textContent !== text) element.textContent = text;
				element.hidden = !text;
			}
		}
		for (const element of [...all("waiting"), ...all("progress")]) element.hidden = !state.waiting;
		wrong = !state.waiting;
		usual = state.state === "starting" ? state.usual : 0;
		from = performance.now() - state.elapsed;
		move();
	}

	// What comes after the last event in time is a connection that is dead, or
	// something in between that keeps the events to itself: then as without
	// scripts.
	let watch;
	function heard(patience) {
		clearTimeout(watch);
		watch = setTimeout(arrive, patience);
	}

	async function listen() {
		reading = new AbortController();
		heard(Math.max(refresh, 10000));
		const answer = await fetch(address, {
			headers: { "Usher-Waiting": "1" }, cache: "no-store", credentials: "same-origin", signal: reading.signal,
		});
		if (!(answer.headers.get("Content-Type") || "").startsWith("text/event-stream")) {
			// Too many pages are open, or this Caddy does not know this visitor.
			heard(refresh);
			return new Promise(() => {});
		}
		const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
		let text = "";
		for (;;) {
			const { value, done } = await reader.read();
			if (done) return;
			heard(10000);
			const events = (text + value).split("\n\n");
			text = events.pop();
			for (const one of events) {
				const name = /^event: (.*)$/m.exec(one), data = /^data: (.*)$/m.exec(one);
				if (name && name[1] === "go") return arrive();
				if (name && name[1] === "state") show(JSON.parse(data[1]));
			}
		}
	}

	// A page that shows what is wrong does not try again behind other windows.
	const idle = () => wrong && document.hidden;
	document.addEventListener("visibilitychange", () => { if (idle()) reading.abort(); });
	async function wanted() {
		while (idle()) {
			clearTimeout(watch);
			await new Promise((resolve) => document.addEventListener("visibilitychange", resolve, { once: true }));
		}
	}

	(async () => {
		// The header of the page asks for a refresh, for browsers that may not
		// run this. Stopping the page cancels it, and all else that is under
		// way: so it comes when the page is complete, and before the listening.
		await loaded;
		window.stop();
		for (let pause = 250; !gone; pause = Math.min(2 * pause, 5000)) {
			const began = performance.now();
			await wanted();
			try {
				await listen();
			} catch {
				// The server is not there, or the page is about to be left.
			}
			if (performance.now() - began > 10000) pause = 250;
			if (!gone) await new Promise((resolve) => setTimeout(resolve, pause * (0.5 + Math.random())));
		}
	})();

	setInterval(move, 100);
})();
