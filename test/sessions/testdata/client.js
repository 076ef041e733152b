// Clients as their library makes them, one session each:
//
//	node client.js <kind> <url> [<transport>]
//
// Lines on standard input are commands: `start <n>` starts n more, `end
// <instance>` ends those whose session is there, `keep <n>` ends all but n on each
// instance. Lines on standard output are
// what happens to them, as JSON: `open`, `answer` with the instance and how many
// messages it has counted, `closed` for a session that was lost, and `done`.
import http from "node:http";
import { createInterface } from "node:readline";
import SockJS from "sockjs-client";
import { io } from "socket.io-client";
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";

const [, , kind, url, transport] = process.argv;
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const patience = 15000;

const within = (promise, what) => Promise.race([
	promise,
	pause(patience).then(() => { throw new Error("no " + what + " in time"); }),
]);

// A reload of Caddy closes idle connections, at times just when a request is
// written to one. A browser sends such a request again by itself. Node does not,
// so it gets a connection for each request, and fetch, which keeps its own, gets
// a second try.
http.globalAgent = new http.Agent({ keepAlive: false });

async function onceMore(send) {
	try {
		return await send();
	} catch (err) {
		if (!(err instanceof TypeError)) throw err;
		await pause(50);
		return send();
	}
}

// Each returns a session once it is open: ask() sends a message and returns the
// answer, lost is a promise that is rejected when the session ends.
const kinds = {
	sockjs: () => new Promise((opened, failed) => {
		const conn = new SockJS(url + "/echo", null, { transports: [transport] });
		let answer, end;
		const lost = new Promise((_, reject) => { end = reject; });
		conn.onopen = () => opened({
			lost,
			ask: () => new Promise((resolve) => { answer = resolve; conn.send("x"); }),
			close: () => { conn.onclose = null; conn.close(); },
		});
		conn.onmessage = (e) => answer(JSON.parse(e.data));
		conn.onclose = (e) => { const why = new Error(e.code + " " + e.reason); failed(why); end(why); };
	}),

	socketio: () => new Promise((opened, failed) => {
		const socket = io(url, {
			transports: transport.split(","), withCredentials: true, forceNew: true, reconnection: false,
		});
		let end;
		const lost = new Promise((_, reject) => { end = reject; });
		socket.on("connect", () => opened({
			lost,
			ask: () => socket.emitWithAck("message", "x"),
			close: () => { socket.off("disconnect"); socket.disconnect(); },
		}));
		socket.on("connect_error", failed);
		socket.on("disconnect", (why) => end(new Error(why)));
	}),

	mcp: async () => {
		const client = new Client({ name: "test", version: "1.0.0" });
		let end;
		const lost = new Promise((_, reject) => { end = reject; });
		await client.connect(new StreamableHTTPClientTransport(new URL(url + "/mcp"), {
			reconnectionOptions: { initialReconnectionDelay: 50, maxReconnectionDelay: 500, reconnectionDelayGrowFactor: 1.5, maxRetries: 2 },
		}));
		client.onclose = () => end(new Error("closed"));
		return {
			lost,
			ask: async () => JSON.parse((await onceMore(() => client.callTool({ name: "count" }))).content[0].text),
			close: () => { client.onclose = null; return client.close(); },
		};
	},
};

const clients = [];

// paused is there while none may send: a promise that resume() keeps.
let paused, resume, sending = 0;

async function pauseAll() {
	paused = new Promise((resolve) => { resume = resolve; });
	// A client that polls asks again when it has its answer: that, too, is over
	// after a moment without a message.
	for (let quiet = 0; quiet < 20; quiet = sending > 0 ? 0 : quiet + 1) await pause(20);
	console.log(JSON.stringify({ client: -1, event: "paused" }));
}

async function run(id) {
	const me = { instance: "", ended: false };
	clients.push(me);
	const tell = (event, more) => console.log(JSON.stringify({ client: id, event, ...more }));
	while (!me.ended) {
		let session;
		try {
			session = await within(kinds[kind](), "session");
			session.lost.catch(() => {});
			tell("open");
			while (!me.ended) {
				if (paused) {
					await Promise.race([paused, session.lost]);
					continue;
				}
				sending++;
				const got = await within(Promise.race([session.ask(), session.lost]), "answer").finally(() => { sending--; });
				me.instance = got.instance;
				tell("answer", got);
				await Promise.race([pause(80 + 40 * Math.random()), session.lost]);
			}
			await session.close();
		} catch (err) {
			tell("closed", { instance: me.instance, error: String(err) });
			await pause(100);
		}
	}
	tell("done");
}

let started = 0;
createInterface({ input: process.stdin }).on("line", (line) => {
	const [command, what] = line.split(" ");
	if (command === "start") {
		for (let k = 0; k < Number(what); k++) run(started++);
	}
	if (command === "end") {
		for (const c of clients) c.ended ||= c.instance === what;
	}
	if (command === "pause") pauseAll();
	if (command === "resume") {
		paused = undefined;
		resume();
	}
	if (command === "keep") {
		const kept = {};
		for (const c of clients.filter((c) => !c.ended)) {
			kept[c.instance] = (kept[c.instance] ?? 0) + 1;
			c.ended = kept[c.instance] > Number(what);
		}
	}
}).on("close", () => process.exit(0));
