// npm's node-pop3: list, fetch everything, delete message 1.
import { readFileSync, writeFileSync } from 'node:fs';
import Pop3Command from 'node-pop3';

const [security, port, ca, user, password, folder] = process.argv.slice(2);
const pop = new Pop3Command({
  host: 'localhost', port: Number(port), user, password, tls: security === 'tls',
  tlsOptions: { ca: readFileSync(ca) },
});
for (const [number, size] of await pop.LIST()) {
  console.log(number, size);
  const chunks = [];
  const [, stream] = await pop.command('RETR', number); // pop.RETR would decode it as UTF-8
  for await (const chunk of stream) chunks.push(chunk);
  writeFileSync(`${folder}/${number}`, Buffer.concat(chunks));
}
await pop.DELE(1);
await pop.QUIT();
