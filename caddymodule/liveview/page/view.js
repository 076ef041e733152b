// The live view. An event stream brings first everything, then what has
// changed; what changed is drawn once per frame of the screen. Nothing that
// comes from elsewhere is ever read as HTML.
"use strict";

(() => {
	const $ = (id) => document.getElementById(id);
	const control = document.body.hasAttribute("data-control");
	const output = document.body.hasAttribute("data-output");
	const title = document.body.dataset.title;
	const hour = 3600;
	const states = ["awake", "waking", "failing", "suspended", "asleep"];
	const origins = { "": "configuration", run_time: "run time", discovered: "discovered" };

	/** make returns an element with properties and children. */
	function make(tag, properties, ...children) {
		const e = document.createElement(tag);
		for (const [name, value] of Object.entries(properties || {})) {
			if (name in e) e[name] = value;
			else e.setAttribute(name, value);
		}
		e.append(...children.filter((c) => c !== null && c !== undefined));
		return e;
	}
	function draw(tag, attributes, ...children) {
		const e = document.createElementNS("http://www.w3.org/2000/svg", tag);
		for (const [name, value] of Object.entries(attributes)) e.setAttribute(name, value);
		e.append(...children);
		return e;
	}
	function write(element, text) {
		if (element.textContent !== text) element.textContent = text;
	}
	const several = (n, what) => (n === 1 ? "1 " + what : n + " " + what + "s");
	function took(ms) {
		if (ms < 1000) return ms + " ms";
		if (ms < 10000) return (ms / 1000).toFixed(1) + " s";
		if (ms < 60000) return Math.round(ms / 1000) + " s";
		if (ms < 3600000) return Math.floor(ms / 60000) + " min " + Math.floor(ms / 1000) % 60 + " s";
		return Math.floor(ms / 3600000) + " h " + Math.floor(ms / 60000) % 60 + " min";
	}
	function clock(iso) {
		const t = new Date(iso);
		return make("time", { dateTime: iso, title: t.toLocaleString() }, t.toLocaleTimeString([], { hour12: false }));
	}

	// ---- what is known

	const services = new Map(); // name -> {data, row, ...}
	const names = []; // sorted
	const dirty = new Set();
	const wanted = new Set(); // states that are shown; none: all
	const wantedOrigins = new Set(); // those that are shown; none: all
	let news = [];
	let newsChanged = false;
	let skew = 0; // of the server's clock, in ms
	let slotsHere = null; // of this Caddy, by service; null without a cluster
	let drawing = false;
	const callbacks = "callback:"; // before the name of a service: the queue of its callbacks
	let queues = new Map(); // of stored requests, by service

	const now = () => (Date.now() + skew) / 1000;

	function soon() {
		if (drawing) return;
		drawing = true;
		requestAnimationFrame(drawAll);
	}

	function learn(data) {
		const known = services.get(data.name);
		if (known) known.data = data;
		else services.set(data.name, { data });
		dirty.add(data.name);
	}

	/** showCluster says which Caddys share the instances, and what this one holds. */
	function showCluster(c) {
		const e = $("cluster");
		e.hidden = !c;
		if (!c) return;
		slotsHere = c.slots;
		const is = (m) => [m.member === c.member && !m.lost && "this Caddy", m.leader && "leads", m.lost && "lost"].filter(Boolean).join(", ");
		const members = c.members.flatMap((m, k) => [k ? ", " : "", make("code", {}, m.member), is(m) ? " (" + is(m) + ")" : ""]);
		const isolated = c.isolated ? [make("strong", {}, "This Caddy is cut off from its cluster. "), "Requests wait until it is back. "] : [];
		e.replaceChildren(...isolated, several(c.members.filter((m) => !m.lost).length, "Caddy") + " together: ", ...members);
	}

	/** learnTasks takes the numbers of stored requests. The page counts on how old they are. */
	function learnTasks(tasks) {
		const before = queues;
		queues = new Map(tasks.queues.map((q) => [q.service, { ...q, since: now() - q.oldest_ms / 1000 }]));
		for (const name of [...before.keys(), ...queues.keys()]) {
			const of = name.startsWith(callbacks) ? name.slice(callbacks.length) : name;
			if (services.has(of)) dirty.add(of);
		}
		const strangers = [...queues.values()].filter((q) => !services.has(q.service) && !q.service.startsWith(callbacks) && q.pending + q.running > 0);
		const e = $("tasks");
		e.hidden = !tasks.error && !strangers.length;
		e.replaceChildren(...(tasks.error ? [make("strong", {}, "The store of tasks cannot be read. "), tasks.error + " "] : []),
			...strangers.map((q) => several(q.pending + q.running, "stored request") + " of " + q.service + (q.pending + q.running === 1 ? " waits" : " wait") + ": no configuration executes them. "));
	}

	const ended = ["done", "failed", "cancelled"];

	/** stored writes the numbers of stored requests of a queue in words. */
	function stored(q, what) {
		const parts = [];
		if (q.running) parts.push(q.running + " running");
		if (q.pending) parts.push(q.pending + " pending" + (q.runnable ? ", the oldest for " + took(Math.max(1, Math.floor(now() - q.since)) * 1000) : ""));
		for (const state of ended) if (q[state]) parts.push(q[state] + " " + state);
		return what + ": " + (parts.join(", ") || (q.dead ? "" : "none"));
	}

	/** showTasks writes the stored requests of a service and its callbacks. */
	function showTasks(s) {
		const all = [["stored requests", queues.get(s.data.name)], ["callbacks", queues.get(callbacks + s.data.name)]].filter(([, q]) => q);
		const words = all.map(([what, q]) => [stored(q, what), q.dead ? several(q.dead, "dead letter") : ""]);
		const key = JSON.stringify(words);
		if (s.told === key) return;
		s.told = key;
		s.tasks.hidden = !words.length;
		s.tasks.replaceChildren(...words.map(([text, dead]) => make("span", {}, text, ...(dead ? [text.endsWith(" ") ? "" : ", ", make("b", {}, dead)] : []))));
	}

	function learnNews(items) {
		const newest = news.length ? news[0].number : 0;
		const fresh = items.filter((i) => i.number > newest);
		if (!fresh.length) return;
		news = fresh.reverse().concat(news).slice(0, 100);
		newsChanged = true;
	}

	// ---- one service

	function place(name) {
		let low = 0, high = names.length;
		while (low < high) {
			const middle = (low + high) >> 1;
			if (names[middle] < name) low = middle + 1;
			else high = middle;
		}
		return low;
	}

	function build(s) {
		const d = s.data;
		s.toggle = make("button", { type: "button", title: d.name, onclick: () => unfold(s, !s.detail) }, d.name);
		s.toggle.setAttribute("aria-expanded", "false");
		s.state = make("b");
		s.backend = document.createTextNode("");
		s.under = draw("path", { class: "under" });
		s.curve = draw("path", {});
		s.count = make("b");
		s.of = document.createTextNode("");
		s.seats = make("div", { className: "seats" });
		s.seats.setAttribute("role", "img");
		s.much = make("span", { className: "much" });
		s.heads = make("i");
		s.queue = make("span");
		s.line = make("div", { className: "line" }, s.heads, s.queue);
		s.tasks = make("p", { className: "tasks", hidden: true });
		s.cold = make("p", { className: "cold" });
		s.trouble = make("p", { className: "trouble", hidden: true });
		s.row = make("div", { className: "row" },
			make("div", { className: "name" }, make("h3", {}, s.toggle), make("p", { className: "about" }, s.state, s.backend)),
			make("div", { className: "target" },
				draw("svg", { class: "spark", viewBox: "0 0 3600 24", preserveAspectRatio: "none", "aria-hidden": "true" },
					draw("line", { x1: 0, x2: 3600, y1: 24, y2: 24 }), s.under, s.curve),
				make("span", {}, s.count, s.of)),
			make("div", { className: "house" }, s.seats, s.much, s.line),
			s.cold);
		if (control) {
			s.buttons = {};
			const actions = make("div", { className: "actions" });
			for (const [what, label] of [["wake", "Wake"], ["resume", "Resume"], ["sleep", "Sleep"], ["suspend", "Suspend"]]) {
				s.buttons[what] = make("button", { type: "button", onclick: () => ask(d.name, what) }, label);
				s.buttons[what].setAttribute("aria-label", label + " " + d.name);
				actions.append(s.buttons[what]);
			}
			s.row.append(actions);
		}
		s.item = make("li", { className: "service" }, s.row, s.tasks, s.trouble);
		s.item.dataset.name = d.name;
		const at = place(d.name);
		const next = names[at];
		names.splice(at, 0, d.name);
		$("services").insertBefore(s.item, next === undefined ? null : services.get(next).item);
	}

	function show(s) {
		const d = s.data;
		if (!s.item) build(s);
		if (s.item.dataset.state !== d.state) s.item.dataset.state = d.state;
		write(s.state, d.state);
		s.backend.data = " · " + d.backend + (d.origin ? " · " + madeInWords(d) : "");
		write(s.count, String(d.target));
		s.of.data = " of " + d.max + (d.min > 0 ? ", min " + d.min : "");
		curve(s);
		seats(s);
		const heads = Math.min(d.waiting, 12);
		s.line.hidden = d.waiting === 0;
		s.heads.style.setProperty("--heads", heads);
		write(s.queue, d.waiting === 0 ? "" : d.waiting + " waiting, " + took(d.oldest_wait_ms) + (d.waiting_bound ? ", " + d.waiting_bound + " for a session" : ""));
		if (s.colds !== d.cold_starts) {
			s.colds = d.cold_starts;
			s.cold.replaceChildren(...(d.cold_starts ? ["cold start ", make("b", {}, took(d.last_cold_start_ms))] : []));
		}
		const started = (d.start?.failed > 1 ? d.start.failed + " attempts failed: " : "") + (d.last_error || d.start?.problem || (d.start?.waits ? "The next start " + d.start.waits : ""));
		const trouble = d.suspension ? d.suspension.reason : d.trouble ? "The newest definition cannot be used: " + d.trouble : started || fellBack(d);
		s.trouble.hidden = trouble === "";
		write(s.trouble, trouble);
		if (s.trouble.title !== trouble) s.trouble.title = trouble; // Folded, its end is left out.
		if (control) {
			const off = d.state === "suspended", none = d.state === "asleep";
			allow(s, { wake: !off && (none || d.state === "failing"), resume: off, sleep: !off && !none && d.state !== "failing", suspend: !off });
		}
		showTasks(s);
		s.item.hidden = !matches(d);
		if (s.detail) look(s);
	}

	/** originOf is where a service comes from. */
	const originOf = (d) => origins[d.origin || ""] || d.origin;

	/** madeInWords says where a service comes from that is not of the configuration. */
	function madeInWords(d) {
		return [originOf(d), d.owner, d.revision && "revision " + d.revision].filter(Boolean).join(", ");
	}

	/** fellBack says why the newest revision is not in force. */
	const fellBack = (d) => d.fell_back ? "Revision " + d.fell_back.revision + " could not be started: " + d.fell_back.reason : "";

	/** allow shows the buttons that make sense, and keeps the focus in the row. */
	function allow(s, wanted) {
		let lost = false;
		for (const [what, button] of Object.entries(s.buttons)) {
			if (button.hidden !== !wanted[what]) {
				lost ||= button === document.activeElement && !wanted[what];
				button.hidden = !wanted[what];
			}
		}
		if (lost) Object.values(s.buttons).find((b) => !b.hidden)?.focus();
	}

	/** seats draws the instances: a row of seats for each. */
	function seats(s) {
		const d = s.data, list = d.instance_list;
		while (s.seats.childElementCount > list.length) s.seats.lastElementChild.remove();
		while (s.seats.childElementCount < list.length) s.seats.append(make("i"));
		const words = [];
		list.forEach((i, k) => {
			const e = s.seats.children[k];
			if (e.dataset.is !== i.state) e.dataset.is = i.state;
			const open = i.slots === null && i.state === "ready";
			const kind = open ? "open" : i.slots > 16 ? "many" : "";
			if (e.className !== kind) e.className = kind;
			write(e, open ? String(i.in_use) : "");
			e.style.setProperty("--slots", i.slots || 4);
			e.style.setProperty("--used", i.in_use);
			const use = i.slots === null ? i.in_use + " in use" : i.in_use + " of " + i.slots + " slots in use";
			e.title = i.id + ": " + i.state + ", " + use;
			words.push(i.state + ", " + use);
		});
		const n = d.instances, all = n.starting + n.ready + n.ejected + n.draining;
		s.seats.hidden = list.length === 0;
		s.seats.setAttribute("aria-label", several(all, "instance") + ": " + words.join("; "));
		const more = all > list.length ? "+" + (all - list.length) + " " : "";
		write(s.much, all === 0 ? "" : more + (d.slots.total === null ? "no limit" : d.slots.in_use + " of " + several(d.slots.total, "slot")));
	}

	// ---- the plot of the last hour, and of what is known of the next minutes

	const ahead = 900; // seconds

	/** height returns where a number of instances is drawn. */
	const height = (n, top) => (24 - (n / top) * 22.5).toFixed(1);

	/** path returns the steps of a number, highest first within a span. */
	function path(spans, from, top) {
		if (!spans.length) return "";
		let d = "", last = 0;
		for (const [at, high, end] of spans) {
			const x = at - from;
			if (x >= 0) {
				d += (d ? "H" + x : "M" + x + " " + height(last, top)) + "V" + height(high, top);
				if (end !== high) d += "H" + (x + 15) + "V" + height(end, top);
			}
			last = end;
			if (x < 0) d = "M0 " + height(last, top);
		}
		return (d || "M0 " + height(last, top)) + "H" + hour;
	}

	/** filled is the area under a path. */
	const filled = (line) => line && line + "V24H" + line.slice(1, line.indexOf(" ")) + "Z";

	const most = (spans) => Math.max(0, ...spans.map((t) => t[1]));

	function top(d) {
		return Math.max(1, d.target, most(d.targets));
	}

	/** when writes a time of the next days. */
	function when(iso) {
		const t = new Date(iso), soon = Math.abs(t / 1000 - now()) < 20 * hour;
		return t.toLocaleTimeString([], { hour12: false, hour: "2-digit", minute: "2-digit", ...(soon ? {} : { weekday: "short" }) });
	}

	/** lines returns what the plot of a service shows: its lines, with their words. */
	function lines(d, from) {
		const { needed_list: needed = [], predicted_list: predicted = [], floor_list: floors = [], schedule, expected } = d;
		const next = schedule?.next ? Math.round(Date.parse(schedule.next) / 1000 - from) : Infinity;
		const later = next < hour + ahead;
		const high = Math.max(top(d), d.needed || 0, most(needed), most(predicted), most(floors), later ? schedule.next_min : 0);
		const all = [
			{ kind: "target", d: path(d.targets, from, high), words: "target " + d.target, most: top(d) },
			{ kind: "needed", d: path(needed, from, high) || "M0 " + height(0, high) + "H" + hour, words: "needed by requests " + (d.needed || 0), most: most(needed) },
		];
		if (d.predicted || most(predicted)) all.push({ kind: "predicted", d: path(predicted, from, high), words: "predicted by the policy " + (d.predicted || 0), most: most(predicted) });
		if (schedule) {
			const change = later ? "H" + Math.max(hour, next) + "V" + height(schedule.next_min, high) : "";
			all.push({
				kind: "floor", d: (path(floors, from, high) || "M0 " + height(schedule.min, high) + "H" + hour) + change + "H" + (hour + ahead),
				words: "scheduled: at least " + schedule.min + (schedule.next ? " until " + when(schedule.next) + ", then " + schedule.next_min : ""), most: most(floors),
			});
		}
		if (expected) {
			const begin = Math.max(0, Date.parse(expected.from) / 1000 - from), end = Math.min(hour + ahead, Date.parse(expected.to) / 1000 - from);
			all.push({
				kind: "expected", words: "next request expected " + when(expected.from) + " to " + when(expected.to),
				d: end < 0 || begin > hour + ahead ? "" : "M" + begin.toFixed() + " 0V24H" + Math.max(end, begin + 15).toFixed() + "V0Z",
			});
		}
		return { all, high, end: schedule || expected ? hour + ahead : hour };
	}

	/** plot draws the lines, and a legend that says in words what they show. */
	function plot(d) {
		const { all, high, end } = lines(d, Math.floor(now()) - hour);
		const words = all.map((l) => l.words + (l.most > 0 ? ", at most " + l.most + " in the last hour" : "")).join("; ");
		const across = (y, kind) => draw("line", { class: kind, x1: 0, x2: end, y1: y, y2: y });
		const axis = make("span", { className: end > hour ? "axis ahead" : "axis" }, ...["an hour ago", "30 min", "now", ...(end > hour ? ["+15 min"] : [])].map((w) => make("span", {}, w)));
		return make("div", {},
			make("div", { className: "plot" }, make("span", {}, String(high)),
				draw("svg", { class: "spark", viewBox: "0 0 " + end + " 24", preserveAspectRatio: "none", role: "img", "aria-label": "Instances: " + words },
					across(24, ""), across(1.5, ""), ...(end > hour ? [draw("line", { class: "now", x1: hour, x2: hour, y1: 0, y2: 24 })] : []),
					...all.filter((l) => l.kind === "expected").map((l) => draw("path", { class: l.kind, d: l.d })),
					draw("path", { class: "under", d: filled(all[0].d) }),
					...all.filter((l) => l.kind !== "expected").map((l) => draw("path", { class: l.kind, d: l.d }))),
				make("span", { className: "low" }, "0"), axis),
			make("ul", { className: "legend" }, ...all.map((l) => make("li", {},
				draw("svg", { viewBox: "0 0 26 10", "aria-hidden": "true" }, draw("path", { class: l.kind, d: l.kind === "expected" ? "M0 0H26V10H0Z" : "M0 5H26" })),
				make("span", {}, l.words)))));
	}

	function curve(s) {
		const from = Math.floor(now()) - hour;
		const line = path(s.data.targets, from, top(s.data));
		if (line === s.drawn) return;
		s.drawn = line;
		s.curve.setAttribute("d", line);
		s.under.setAttribute("d", filled(line));
	}

	// ---- what is behind a name

	function unfold(s, open) {
		s.toggle.setAttribute("aria-expanded", String(open));
		s.item.classList.toggle("unfolded", open);
		if (!open) {
			clearTimeout(s.reading);
			s.detail.remove();
			s.detail = s.written = null;
			return;
		}
		s.detail = make("div", { className: "detail" });
		s.item.append(s.detail);
		look(s);
		if (!output) return;
		s.written = make("section", { className: "written", hidden: true }, make("h4", {}, "Output"), make("ol", { className: "scroll", tabIndex: 0 }));
		s.written.lastElementChild.setAttribute("aria-label", "The last lines of output");
		s.item.append(s.written);
		s.after = 0;
		read(s, s.written);
	}

	/** read fetches the lines of output that are not shown yet, once a second. */
	async function read(s, section) {
		let again = 1000;
		try {
			if (!document.hidden) {
				const r = await fetch("?output&service=" + encodeURIComponent(s.data.name) + "&after=" + s.after, { cache: "no-store" });
				if (r.ok && s.written === section) written(s, await r.json());
				else if (r.status === 409) again = 0; // Nothing is kept of it.
			}
		} catch {
			// The stream says that the link is down.
		}
		if (again && s.written === section) s.reading = setTimeout(read, again, s, section);
	}

	/** written adds lines of output, and stays at the end if the end was seen. */
	function written(s, lines) {
		if (!lines.length) return;
		s.after = lines[lines.length - 1].number;
		const list = s.written.lastElementChild;
		const atEnd = s.written.hidden || list.scrollTop + list.clientHeight >= list.scrollHeight - 4;
		s.written.hidden = false;
		list.append(...lines.map((l) => make("li", { className: l.stream }, clock(l.time), make("code", { title: l.instance }, l.instance.slice(0, 6)), make("span", {}, l.text))));
		while (list.childElementCount > 100) list.firstElementChild.remove();
		if (atEnd) list.scrollTop = list.scrollHeight;
	}

	/** look fetches the details of a service, at most twice a second. */
	async function look(s) {
		if (s.looking) {
			s.again = true;
			return;
		}
		s.looking = true;
		try {
			const r = await fetch("?format=json&service=" + encodeURIComponent(s.data.name), { cache: "no-store" });
			if (r.ok && s.detail) details(s, await r.json());
		} catch {
			// The stream says that the link is down.
		}
		setTimeout(() => {
			s.looking = false;
			if (s.again && s.detail) look(s);
			s.again = false;
		}, 500);
	}

	/** letter is a dead letter, with what can be done with it. */
	function letter(s, e) {
		const what = (e.queue === s.data.name ? "" : "callback ") + e.method + " " + e.path;
		const item = make("li", {}, clock(e.ended), " ", make("b", {}, what), " after " + several(e.attempts, "attempt"), make("small", {}, e.reason), make("small", {}, make("code", {}, e.id)));
		if (control) {
			const button = (verb, label) => {
				const b = make("button", { type: "button", onclick: () => askTask(s, e.id, verb) }, label);
				b.setAttribute("aria-label", label + " " + e.id);
				return b;
			};
			item.append(make("div", { className: "actions" }, button("retry", "Retry"), button("purge", "Remove")));
		}
		return item;
	}

	function details(s, d) {
		const part = (heading, ...children) => make("section", {}, make("h4", {}, heading), ...children);
		const scroll = (...children) => {
			const e = make("div", { className: "scroll", tabIndex: 0 }, ...children);
			e.setAttribute("role", "group");
			return e;
		};
		const none = () => make("p", { className: "none" }, "none");
		const sessions = d.instance_list.some((i) => i.session_until);
		const rows = d.instance_list.map((i) => make("tr", {}, make("td", {}, make("code", {}, i.id)), make("td", {}, i.state),
			make("td", {}, i.in_use + (i.slots === null ? "" : " of " + i.slots)), ...(sessions ? [make("td", {}, i.session_until ? "until " + clock(i.session_until) : "none")] : []),
			make("td", {}, clock(i.since)), make("td", {}, make("code", {}, i.address))));
		const head = make("tr", {}, ...["Instance", "State", "In use", ...(sessions ? ["Sessions"] : []), "Since", "Address"].map((h) => make("th", { scope: "col" }, h)));
		const decisions = d.decisions.slice(-30).reverse().map((e) => make("li", {}, clock(e.time), " ", make("b", {}, e.from + " → " + e.to), " " + e.reason, make("small", {}, e.words)));
		const failures = d.failures.slice().reverse().map((e) => make("li", {}, clock(e.time), " " + e.reason, make("pre", {}, e.message)));
		const colds = d.cold_start_list.slice().reverse().map((e) => make("li", {}, clock(e.time), " ", make("b", {}, took(e.ms))));
		const dead = d.dead_letters.map((e) => letter(s, e));
		const all = [d.name, callbacks + d.name].reduce((n, q) => n + (queues.get(q)?.dead || 0), 0);
		const kept = [...s.detail.querySelectorAll(".scroll")].map((e) => e.scrollTop);
		s.detail.replaceChildren(
			make("div", {},
				part("Instances over the last hour", plot(d)),
				part("Instances" + (slotsHere && d.name in slotsHere ? ", of which " + several(slotsHere[d.name], "slot") + (slotsHere[d.name] === 1 ? " is" : " are") + " held here" : ""), rows.length ? scroll(make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows))) : none())),
			make("div", {},
				...(dead.length ? [part("Dead letters" + (dead.length < all ? ", the oldest " + dead.length + " of " + all : ""), scroll(make("ol", { className: "dead" }, ...dead)))] : []),
				part("Decisions", decisions.length ? scroll(make("ol", {}, ...decisions)) : none()),
				part("Cold starts", colds.length ? make("ol", { className: "short" }, ...colds) : none()),
				part("Failed starts", failures.length ? scroll(make("ol", {}, ...failures)) : none())));
		s.detail.querySelectorAll(".scroll").forEach((e, k) => {
			e.setAttribute("aria-label", e.parentElement.firstElementChild.textContent);
			e.scrollTop = kept[k] || 0;
		});
	}

	// ---- the whole

	function matches(d) {
		const text = $("filter").value.trim().toLowerCase();
		return (!wanted.size || wanted.has(d.state)) && (!wantedOrigins.size || wantedOrigins.has(d.origin || "")) &&
			(!text || d.name.includes(text) || d.backend.toLowerCase().includes(text) || (d.owner || "").toLowerCase().includes(text));
	}

	function filter() {
		for (const s of services.values()) if (s.item) s.item.hidden = !matches(s.data);
		summarize();
	}

	/** chip makes a button that lets through what is like that, with its number. */
	function chip(group, chosen, value, label) {
		const c = { number: make("b", {}, "0") };
		c.button = make("button", {
			type: "button",
			onclick() {
				if (!chosen.delete(value)) chosen.add(value);
				c.button.setAttribute("aria-pressed", String(chosen.has(value)));
				filter();
			},
		}, c.number, label);
		c.button.setAttribute("aria-pressed", "false");
		group.append(c.button);
		return c;
	}

	const chips = new Map(), originChips = new Map();
	for (const state of states) {
		chips.set(state, chip($("states"), wanted, state, state));
		chips.get(state).button.dataset.state = state;
	}
	for (const [origin, label] of Object.entries(origins)) originChips.set(origin, chip($("origins"), wantedOrigins, origin, label));

	function summarize() {
		const count = new Map(), made = new Map();
		let ready = 0, inside = 0, waiting = 0, shown = 0;
		for (const { data: d } of services.values()) {
			count.set(d.state, (count.get(d.state) || 0) + 1);
			made.set(d.origin || "", (made.get(d.origin || "") || 0) + 1);
			ready += d.instances.ready;
			inside += d.slots.in_use;
			waiting += d.waiting;
			if (matches(d)) shown++;
		}
		for (const [state, chip] of chips) write(chip.number, String(count.get(state) || 0));
		for (const [origin, chip] of originChips) write(chip.number, String(made.get(origin) || 0));
		// Without a registry all are of the configuration, and there is nothing to choose.
		$("origins").hidden = !wantedOrigins.size && !made.get("run_time") && !made.get("discovered");
		write($("ready"), String(ready));
		write($("inside"), String(inside));
		write($("waiting"), String(waiting));
		write($("shown"), shown === services.size ? several(shown, "service") : shown + " of " + several(services.size, "service"));
		$("none").hidden = shown > 0 || !online;
		write($("none"), services.size ? "No service is like that." : "There are no services yet.");
		const failing = count.get("failing") || 0;
		document.title = failing ? "(" + failing + " failing) " + title : title;
	}

	function drawAll() {
		drawing = false;
		for (const name of dirty) {
			const s = services.get(name);
			if (s) show(s);
		}
		dirty.clear();
		summarize();
		if (newsChanged) showNews();
	}

	function showNews() {
		newsChanged = false;
		const list = $("news");
		const newest = Number(list.firstElementChild?.dataset.number || 0);
		const fresh = news.filter((n) => n.number > newest).map((n) => {
			const name = make("b", {}, n.service);
			let text;
			if (n.kind === "cold_start") text = make("p", {}, name, " cold start in ", make("b", {}, took(n.ms)));
			else if (n.kind === "failure") text = make("p", {}, name, " start failed", make("small", { title: n.reason }, n.reason));
			else text = make("p", {}, name, " ", make("span", { className: "arrow" }, n.from + " → " + n.to), make("small", {}, n.reason));
			const item = make("li", {}, clock(n.time), text);
			item.dataset.number = n.number;
			item.dataset.kind = n.kind;
			return item;
		});
		list.prepend(...fresh);
		while (list.childElementCount > 100) list.lastElementChild.remove();
	}

	// ---- buttons

	let saying = 0;
	function say(text, bad) {
		const e = $("said");
		write(e, text);
		e.hidden = false;
		e.toggleAttribute("data-bad", bad);
		clearTimeout(saying);
		saying = setTimeout(() => { e.hidden = true; }, bad ? 12000 : 4000);
	}

	async function ask(name, what, body) {
		if (what === "suspend" && !body) {
			body = await reason(name);
			if (!body) return;
		}
		const now = await post(name, "?service=" + encodeURIComponent(name) + "&do=" + what, body);
		if (!now) return;
		const waiting = now.waiting + (now.visitors || 0);
		let done = { wake: "wakes up", sleep: "goes to sleep", suspend: "is suspended", resume: "is resumed" }[what];
		if (what === "sleep" && waiting > 0) {
			done = "wakes again at once: " + waiting + (waiting === 1 ? " request is" : " requests are") + " waiting. Suspend it to stop it anyway.";
		}
		say(name + ": " + done, false);
	}

	async function askTask(s, id, what) {
		if (await post(id, "?task=" + encodeURIComponent(id) + "&do=" + what)) {
			say(id + ": " + { retry: "is tried again", purge: "is removed" }[what], false);
		}
		if (s.detail) look(s);
	}

	/** post asks for something, and says it if it is not done. */
	async function post(of, url, body) {
		try {
			const r = await fetch(url, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body || {}) });
			if (r.ok) return await r.json();
			const text = await r.text();
			let said = text;
			try {
				said = JSON.parse(text).error || text;
			} catch {
				// Something in front of Usher has answered.
			}
			say(of + ": " + (said || "status " + r.status), true);
		} catch {
			say(of + ": the server cannot be reached", true);
		}
		return null;
	}

	/** reason asks why, and returns nothing if it is not to be done. */
	function reason(name) {
		const dialog = $("suspend"), field = $("reason");
		write($("suspend-title"), "Suspend " + name);
		field.value = "";
		return new Promise((resolve) => {
			const end = (answer) => {
				resolve(answer);
				dialog.close();
			};
			$("suspend-yes").onclick = () => end({ reason: field.value.trim() });
			$("suspend-no").onclick = () => end(null);
			field.onkeydown = (e) => { if (e.key === "Enter") end({ reason: field.value.trim() }); };
			dialog.onclose = () => resolve(null);
			dialog.showModal();
			field.focus();
		});
	}

	// ---- the stream

	let online = false;
	let pause = 250;

	function link(on, text) {
		online = on;
		$("link").dataset.link = on ? "on" : "off";
		write($("link"), text);
	}

	function connect() {
		const stream = new EventSource("?stream");
		const again = (text) => {
			stream.close();
			link(false, text);
			// Not all pages at once after a reload.
			setTimeout(connect, pause * (0.5 + Math.random()));
			pause = Math.min(pause * 2, 10000);
		};
		stream.addEventListener("present", (e) => {
			const present = JSON.parse(e.data);
			skew = Date.parse(present.time) - Date.now();
			pause = 250;
			const there = new Set(present.services.map((s) => s.name));
			for (const name of services.keys()) if (!there.has(name)) forget(name);
			present.services.forEach(learn);
			slotsHere = null;
			showCluster(present.cluster);
			learnTasks(present.tasks || { queues: [] });
			// Another Caddy counts from the start again.
			news = [];
			$("news").replaceChildren();
			learnNews(present.news);
			link(true, "live");
			soon();
		});
		stream.addEventListener("frame", (e) => {
			const frame = JSON.parse(e.data);
			frame.services.forEach(learn);
			if (frame.cluster) showCluster(frame.cluster);
			if (frame.tasks) learnTasks(frame.tasks);
			frame.gone.forEach(forget);
			learnNews(frame.news);
			soon();
		});
		stream.addEventListener("bye", () => again("reconnecting"));
		stream.onerror = () => again("connection lost, trying again");
	}

	function forget(name) {
		const s = services.get(name);
		services.delete(name);
		dirty.delete(name);
		if (!s?.item) return;
		clearTimeout(s.reading);
		s.written = null;
		s.item.remove();
		names.splice(place(name), 1);
	}

	$("filter").addEventListener("input", filter);
	document.addEventListener("keydown", (e) => {
		if (e.key === "/" && !/^(INPUT|TEXTAREA)$/.test(document.activeElement.tagName) && !e.ctrlKey && !e.metaKey) {
			e.preventDefault();
			$("filter").focus();
		} else if (e.key === "Escape" && document.activeElement === $("filter")) {
			$("filter").value = "";
			filter();
		}
	});
	// The plots move on although nothing happens.
	setInterval(() => {
		for (const [name, s] of services) if (s.data.targets.length || queues.has(name)) dirty.add(name);
		if (dirty.size && !document.hidden) soon();
	}, 15000);
	connect();
})();
