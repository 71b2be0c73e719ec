// A real OpenID provider of one user, ann, who agrees to everything that is asked.
// Prints its port on standard output and ends with standard input.
import http from "node:http";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const require = createRequire(process.argv[2] + "/");
const { Provider } = await import(pathToFileURL(require.resolve("oidc-provider")));

const server = http.createServer();
await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
const url = `http://127.0.0.1:${server.address().port}`;

const secret = "collector-secret";
const grants = ["authorization_code", "refresh_token", "client_credentials"];
const client = {
  client_id: "collector",
  client_secret: secret,
  application_type: "native", // any port of a loopback address (RFC 8252 section 7.3)
  token_endpoint_auth_method: "client_secret_post",
  grant_types: [...grants, "urn:ietf:params:oauth:grant-type:device_code"],
  response_types: ["code"],
  redirect_uris: ["http://127.0.0.1/"],
};
const introspector = {
  client_id: "mail-server",
  client_secret: "mail-server-secret",
  token_endpoint_auth_method: "client_secret_basic",
  grant_types: ["client_credentials"],
  response_types: [],
  redirect_uris: [],
};
const resource = "urn:restante:pop3";

const provider = new Provider(url, {
  clients: [client, introspector],
  scopes: ["openid", "offline_access", "email", "mail"],
  claims: { openid: ["sub"], email: ["email", "email_verified"] },
  conformIdTokenClaims: false,
  findAccount: (_, id) => ({
    accountId: id,
    claims: () => ({ sub: id, email: `${id}@example.org`, email_verified: true }),
  }),
  pkce: { required: () => true },
  rotateRefreshToken: true,
  features: {
    devInteractions: { enabled: false },
    deviceFlow: { enabled: true },
    clientCredentials: { enabled: true },
    introspection: { enabled: true, allowedPolicy: () => true },
    revocation: { enabled: true },
    // Access tokens for the mail server are JWTs where a client asks for its resource.
    resourceIndicators: {
      enabled: true,
      defaultResource: () => [],
      getResourceServerInfo: () => ({
        scope: "mail openid email offline_access",
        audience: resource,
        accessTokenFormat: "jwt",
        jwt: { sign: { alg: "RS256" } },
      }),
    },
  },
  interactions: { url: (_, interaction) => `/agree/${interaction.uid}` },
});

// The person: signs in and agrees, without a page.
const answer = provider.callback();
server.on("request", async (request, response) => {
  if (!request.url.startsWith("/agree/")) return answer(request, response);
  const { prompt, params, session, grantId } = await provider.interactionDetails(request, response);
  let result = { login: { accountId: "ann" } };
  if (prompt.name === "consent") {
    const grant = grantId
      ? await provider.Grant.find(grantId)
      : new provider.Grant({ accountId: session.accountId, clientId: params.client_id });
    grant.addOIDCScope(params.scope);
    grant.addResourceScope(resource, params.scope);
    result = { consent: { grantId: await grant.save() } };
  }
  await provider.interactionFinished(request, response, result, { mergeWithLastSubmission: true });
});

console.log(url);
process.stdin.on("end", () => process.exit(0)).resume();
