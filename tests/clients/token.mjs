// The tokens of the daemons that run, as their clients know them: by the address of the daemon.

const tokens = new Map();

/** From now on requests to this address show the token; without one they show none. */
export function know(url, token) {
  tokens.set(new URL(url).origin, token);
}

/** These headers, with the token of the daemon at this address unless they have one already. */
export function authorized(url, headers = {}) {
  const token = URL.canParse(url) ? tokens.get(new URL(url).origin) : undefined;
  return token === undefined ? headers : { authorization: `Bearer ${token}`, ...headers };
}

/** The token itself. */
export function tokenOf(url) {
  return tokens.get(new URL(url).origin);
}
