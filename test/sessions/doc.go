// Package sessions proves that sessions hold, with servers and clients that know
// nothing of Usher: sockjs, socket.io and MCP over Streamable HTTP, as npm has
// them, and a browser's cookie jar. They run on as many as three instances,
// through a cold start, a scale-up, a reload, an instance that is killed, and a
// scale-down.
//
// The programs are in testdata, with their lock file. `npm ci` there installs
// them; without them the tests are skipped.
package sessions
