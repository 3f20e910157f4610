// The client behind node's fetch, through its proxy agent: undici.js PROXY-ADDRESS PROXY-PORT URL CA.
const { readFileSync } = require('fs');
const { ProxyAgent, request } = require('undici');

const [host, port, url, ca] = process.argv.slice(2);
const dispatcher = new ProxyAgent({ uri: `http://${host}:${port}`, requestTls: { ca: readFileSync(ca) } });
request(url, { dispatcher }).then(async ({ statusCode, body }) => {
  process.stdout.write(`${statusCode} ${await body.text()}`);
  await dispatcher.close();
});
