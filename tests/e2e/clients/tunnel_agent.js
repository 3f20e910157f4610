// What `request` and its kin tunnel with; its CONNECT names another Host: tunnel_agent.js PROXY-ADDRESS PROXY-PORT URL CA.
const { readFileSync } = require('fs');
const https = require('https');
const tunnel = require('tunnel-agent');

const [host, port, url, ca] = process.argv.slice(2);
const agent = tunnel.httpsOverHttp({ proxy: { host, port }, ca: readFileSync(ca) });
https.get(url, { agent }, (answer) => {
  process.stdout.write(`${answer.statusCode} `);
  answer.pipe(process.stdout);
});
