// npm's yapople: list, fetch everything, delete message 1.
import { readFileSync, writeFileSync } from 'node:fs';
import { Client } from 'yapople';

const [security, port, ca, username, password, folder] = process.argv.slice(2);
const client = new Client({
  host: 'localhost', port: Number(port), username, password, tls: security === 'tls',
  options: { ca: readFileSync(ca) },
});
await client.connect();
for (const [number, size] of Object.entries(await client.list())) {
  console.log(number, size);
  writeFileSync(`${folder}/${number}`, await client.retrieve(Number(number)));
}
await client.delete(1);
await client.quit();
