// The daemon's HTTP surface, for the checks: JSON in and out, and a clear failure when the status is another one.

import assert from 'node:assert/strict';
import http from 'node:http';

import { authorized } from './token.mjs';
import { eventually } from './wait.mjs';

export class Api {
  constructor(url) {
    this.url = url;
  }

  /** Any request; the answer's status, headers and body (parsed when it is JSON). */
  async call(method, path, body, headers = {}) {
    const text = body === undefined || typeof body === 'string' ? body : JSON.stringify(body);
    const type = text === undefined ? {} : { 'content-type': 'application/json' };
    const response = await fetch(this.url + path, { method, body: text, headers: authorized(this.url, { ...type, ...headers }) });
    return { status: response.status, headers: response.headers, body: parsed(await response.text()) };
  }

  async get(path) {
    const { status, body } = await this.call('GET', path);
    assert.equal(status, 200, `GET ${path} answered ${status}: ${JSON.stringify(body)}`);
    return body;
  }

  async post(path, body, ...expected) {
    const answer = await this.call('POST', path, body);
    assert.ok(expected.includes(answer.status),
      `POST ${path} answered ${answer.status}, expected ${expected.join(' or ')}: ${JSON.stringify(answer.body)}`);
    return answer.body;
  }

  /** A session in a workspace of its own choice: the AI SDK's request cannot name one. */
  createSession(id, workspace) {
    return this.post('/v1/sessions', { id, workspace }, 201);
  }

  send(session, text, id) {
    return this.post(`/v1/sessions/${session}/runs`, { message: { id, text } }, 202);
  }

  run(id) {
    return this.get(`/v1/runs/${id}`);
  }

  async runs(session) {
    return (await this.get(`/v1/sessions/${session}/runs`)).items;
  }

  async messages(session, query = '') {
    return (await this.get(`/v1/sessions/${session}/messages${query}`)).items;
  }

  /** The run, once it has one of these statuses. */
  reached(id, ...statuses) {
    const ask = async () => {
      const run = await this.run(id);
      return statuses.includes(run.status) ? run : undefined;
    };
    return eventually(ask, `run ${id} ${statuses.join(' or ')}`);
  }

  settled(id) {
    return this.reached(id, 'completed', 'failed', 'cancelled', 'timed_out', 'interrupted');
  }

  runEvents(id) {
    return `${this.url}/v1/runs/${id}/events`;
  }
}

/**
 * A request with headers that `fetch` does not let through (Host, Origin, Expect). With `Expect: 100-continue` the body
 * goes out only when the server asks for it, so that a refusal is read before the connection closes.
 */
export function rawRequest(url, { method = 'GET', headers = {}, body } = {}) {
  return new Promise((resolve, reject) => {
    const request = http.request(url, { method, headers: authorized(url, headers), agent: false });
    request.on('error', reject);
    request.on('response', (response) => {
      const parts = [];
      response.on('data', (part) => parts.push(part));
      response.on('error', reject);
      response.on('end', () => {
        request.destroy();
        const text = Buffer.concat(parts).toString();
        resolve({ status: response.statusCode, headers: new Headers(response.headers), body: parsed(text) });
      });
    });
    if (headers.expect) {
      request.on('continue', () => request.end(body));
      request.flushHeaders();
    } else {
      request.end(body);
    }
  });
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}
