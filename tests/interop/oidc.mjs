// A real OpenID provider (npm's oidc-provider) on loopback.  It tells its port, and then for each
// line {"account", "format", "resource"} of its standard input a new access token.
import { createInterface } from 'node:readline';
import { Provider } from 'oidc-provider';

const port = Number(process.argv[2]);
const issuer = `http://127.0.0.1:${port}`;
const resource = 'urn:restante';
const provider = new Provider(issuer, {
  clients: [
    { client_id: 'phone', client_secret: 'unused', redirect_uris: ['https://phone.example/'] },
    {
      client_id: 'restante', client_secret: 'sec:ret', grant_types: [], response_types: [],
      redirect_uris: [],
    },
  ],
  claims: { email: ['email', 'email_verified'] },
  features: {
    introspection: { enabled: true, allowedPolicy: () => true },
    resourceIndicators: {
      enabled: true,
      getResourceServerInfo: (_, indicator) => ({
        scope: 'mail', audience: indicator, accessTokenFormat: formats.get(indicator),
        accessTokenTTL: 600,
      }),
    },
  },
  extraTokenClaims: (_, token) => ({
    email: `${token.accountId}@example.org`, email_verified: token.accountId !== 'eve',
  }),
  findAccount: (_, id) => ({ accountId: id, claims: () => ({ sub: id }) }),
});
const formats = new Map();

const mint = async ({ account, format, audience = resource, ttl = 600 }) => {
  formats.set(audience, format);
  const client = await provider.Client.find('phone');
  const grant = new provider.Grant({ accountId: account, clientId: 'phone' });
  grant.addResourceScope(audience, 'mail');
  const grantId = await grant.save();
  const token = new provider.AccessToken({
    accountId: account, client, grantId, scope: 'mail', gty: 'authorization_code', expiresIn: ttl,
  });
  token.resourceServer = new provider.ResourceServer(audience, {
    scope: 'mail', audience, accessTokenFormat: format, accessTokenTTL: ttl,
  });
  return token.save();
};

const server = provider.listen(port, '127.0.0.1', () => {
  console.log(JSON.stringify({ issuer }));
});
createInterface({ input: process.stdin })
  .on('line', async (line) => {
    try {
      console.log(JSON.stringify({ token: await mint(JSON.parse(line)) }));
    } catch (error) {
      console.log(JSON.stringify({ error: String(error.stack) }));
    }
  })
  .on('close', () => { server.close(); process.exit(0); });
