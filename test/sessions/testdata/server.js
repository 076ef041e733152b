// An application with sessions in its memory, as its library makes it. It knows
// nothing of Usher but the variables that every instance has.
//
//	node server.js sockjs|socketio|mcp|jar
import { createServer } from "node:http";
import { randomUUID } from "node:crypto";
import express from "express";
import sockjs from "sockjs";
import { Server as SocketIO } from "socket.io";
import { McpServer } from "@modelcontextprotocol/sdk/server/mcp.js";
import { StreamableHTTPServerTransport } from "@modelcontextprotocol/sdk/server/streamableHttp.js";
import { isInitializeRequest } from "@modelcontextprotocol/sdk/types.js";

const instance = process.env.USHER_INSTANCE;
const app = express();
const server = createServer(app);

const kinds = {
	// Each message is answered with how many the session has had.
	sockjs() {
		const echo = sockjs.createServer({ log() {} });
		echo.on("connection", (conn) => {
			let count = 0;
			conn.on("data", () => conn.write(JSON.stringify({ instance, count: ++count })));
		});
		echo.installHandlers(server, { prefix: "/echo" });
	},

	socketio() {
		new SocketIO(server).on("connection", (socket) => {
			let count = 0;
			socket.on("message", (_, answer) => answer({ instance, count: ++count }));
		});
	},

	mcp() {
		const transports = new Map();
		app.use(express.json());
		app.post("/mcp", async (req, res) => {
			let transport = transports.get(req.headers["mcp-session-id"]);
			if (!transport && isInitializeRequest(req.body)) {
				transport = new StreamableHTTPServerTransport({
					sessionIdGenerator: () => randomUUID(),
					onsessioninitialized: (id) => transports.set(id, transport),
				});
				let count = 0;
				const mcp = new McpServer({ name: "counter", version: "1.0.0" });
				mcp.registerTool("count", { description: "counts its calls" }, async () => ({
					content: [{ type: "text", text: JSON.stringify({ instance, count: ++count }) }],
				}));
				await mcp.connect(transport);
			}
			if (!transport) {
				res.status(404).json({ jsonrpc: "2.0", error: { code: -32000, message: "No valid session ID provided" }, id: null });
				return;
			}
			await transport.handleRequest(req, res, req.body);
		});
		const bySession = async (req, res) => {
			const transport = transports.get(req.headers["mcp-session-id"]);
			if (transport) await transport.handleRequest(req, res);
			else res.status(404).end();
		};
		app.get("/mcp", bySession);
		app.delete("/mcp", bySession);
	},

	// A session as PHP has it: a cookie of the application, and a file or memory
	// of this machine.
	jar() {
		const counts = new Map();
		app.get("/", (req, res) => {
			let [, id] = /(?:^|; )app=([\w-]+)/.exec(req.headers.cookie ?? "") ?? [];
			if (!counts.has(id)) {
				id = randomUUID();
				res.cookie("app", id);
			}
			counts.set(id, (counts.get(id) ?? 0) + 1);
			setTimeout(() => res.json({ instance, count: counts.get(id) }), 60);
		});
	},
};

kinds[process.argv[2]]();
server.listen(Number(process.env.PORT), "127.0.0.1");
