// node's own HTTP server in its lenient mode: node_server.js ADDRESS PORT LOG.
// Writes every request that it has seen as a line of JSON into LOG.
const [, , address, port, log] = process.argv;
const { appendFileSync } = require("fs");
const server = require("http").createServer({ insecureHTTPParser: true }, (request, response) => {
  const { method, url, headers } = request;
  appendFileSync(log, JSON.stringify({ method, line: `${method} ${url}`, host: headers.host ?? null }) + "\n");
  response.setHeader("Content-Length", 2);
  response.end("ok");
});
server.on("clientError", (_, socket) => socket.destroy());
server.listen(Number(port), address, 256);
