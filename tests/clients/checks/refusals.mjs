// What is refused, and how it is said: `{"error":{"code","message"}}` with the fitting status.

import assert from 'node:assert/strict';

import { rawRequest } from '../api.mjs';
import { openChat } from '../chat.mjs';

function assertRefused(answer, statuses, what) {
  const said = `${what} answered ${answer.status}: ${JSON.stringify(answer.body)?.slice(0, 300)}`;
  assert.ok([statuses].flat().includes(answer.status), `${said}, expected ${statuses}`);
  assert.match(answer.headers.get('content-type') ?? '', /^application\/json/, said);
  assert.deepEqual(Object.keys(answer.body), ['error'], said);
  assert.match(answer.body.error.code, /^[a-z][a-z_]*$/, said);
  assert.ok(typeof answer.body.error.message === 'string' && answer.body.error.message !== '', said);
}

const chatBody = (id, text = 'hello') => ({
  id,
  messages: [{ id: 'm-1', role: 'user', parts: [{ type: 'text', text }] }],
  trigger: 'submit-message',
});

export const refusals = [
  {
    name: 'refused: malformed JSON',
    run: async ({ api, id }) => {
      for (const path of ['/api/chat', '/v1/sessions', `/v1/sessions/${id}/runs`]) {
        assertRefused(await api.call('POST', path, '{"id":'), 400, `POST ${path}`);
      }
    },
  },
  {
    name: 'refused: what does not exist',
    run: async ({ api, id }) => {
      const session = `/v1/sessions/${id}`;
      const run = '/v1/runs/01900000-0000-7000-8000-000000000000';
      for (const path of [session, `${session}/runs`, run, `${run}/events`, '/v1/nothing']) {
        assertRefused(await api.call('GET', path), 404, `GET ${path}`);
      }
      assertRefused(await api.call('POST', `${run}/cancel`), 404, 'cancel of an unknown run');
      // A page opens a chat before its first message is sent.
      for (const list of ['messages', 'events']) assert.deepEqual((await api.get(`${session}/${list}`)).items, []);
    },
  },
  {
    name: 'refused: a body of 5 MiB',
    run: async ({ api, id }) => {
      const body = JSON.stringify(chatBody(id, 'x'.repeat(5 * 1024 * 1024)));
      const length = Buffer.byteLength(body);
      const headers = { 'content-type': 'application/json', 'content-length': length, expect: '100-continue' };
      for (const path of ['/api/chat', `/v1/sessions/${id}/runs`]) {
        assertRefused(await rawRequest(api.url + path, { method: 'POST', headers, body }), 413, `POST ${path}`);
      }
    },
  },
  {
    name: 'refused: a content type that is not JSON',
    run: async ({ api, id }) => {
      for (const type of ['text/plain', 'application/x-www-form-urlencoded']) {
        const answer = await api.call('POST', '/api/chat', chatBody(id), { 'content-type': type });
        assertRefused(answer, 415, `POST as ${type}`);
      }
      assertRefused(await api.call('GET', `/v1/sessions/${id}`), 404, 'the session, which is not there,');
    },
  },
  {
    name: 'refused: ids that could be paths or are too long',
    run: async ({ api, id }) => {
      for (const bad of ['a/b', 'a b', '', 'x'.repeat(201)]) {
        const what = `the id ${JSON.stringify(bad.slice(0, 20))}`;
        assertRefused(await api.call('POST', '/v1/sessions', { id: bad }), [400, 422], `${what} for a session`);
        assertRefused(await api.call('POST', '/api/chat', chatBody(bad)), [400, 422], `${what} for a chat`);
        const sent = await api.call('POST', `/v1/sessions/${id}/runs`, { message: { id: bad, text: 'hello' } });
        assertRefused(sent, [400, 422], `${what} for a message`);
        if (bad === '') continue;
        const answer = await api.call('GET', `/v1/sessions/${encodeURIComponent(bad)}`);
        assertRefused(answer, [400, 404, 422], `${what} in a path`);
      }
      await api.createSession('x'.repeat(200), 'default');
    },
  },
  {
    name: 'refused: a message without text',
    run: async ({ api, id }) => {
      for (const text of ['', ' \n']) {
        assertRefused(await api.call('POST', '/api/chat', chatBody(id, text)), 422, 'an empty chat message');
        const sent = await api.call('POST', `/v1/sessions/${id}/runs`, { message: { text } });
        assertRefused(sent, 422, 'an empty message');
      }
    },
  },
  {
    name: 'refused: a message to a busy session, when the client wants that',
    run: async ({ api, id }) => {
      const { id: run } = await api.send(id, '/hang');
      const body = { message: { text: 'hello' }, when_busy: 'reject' };
      const answer = await api.call('POST', `/v1/sessions/${id}/runs`, body);
      assertRefused(answer, 409, 'when_busy: reject');
      assertRefused(await api.call('POST', `/v1/sessions/${id}/close`, {}), 409, 'close while busy');
      await api.call('POST', `/v1/runs/${run}/cancel`);
      assert.equal((await api.settled(run)).status, 'cancelled');
      assert.equal((await api.runs(id)).length, 1, 'the refused message started nothing');
    },
  },
  {
    name: 'refused: a session that exists with other values',
    run: async ({ api, id }) => {
      await api.post('/v1/sessions', { id, title: 'one' }, 201);
      await api.post('/v1/sessions', { id, title: 'one' }, 200);
      assertRefused(await api.call('POST', '/v1/sessions', { id, title: 'two' }), 409, 'other values');
    },
  },
  {
    name: 'refused: a page of another origin, and a foreign host name',
    run: async ({ api, id }) => {
      const isClientError = Array.from({ length: 100 }, (_, index) => 400 + index);
      const body = JSON.stringify(chatBody(id));
      const host = new URL(api.url).host;
      const post = (headers) => rawRequest(`${api.url}/api/chat`, {
        method: 'POST',
        headers: { 'content-type': 'application/json', 'content-length': Buffer.byteLength(body), ...headers },
        body,
      });
      assertRefused(await post({ origin: 'https://evil.example' }), isClientError, 'another origin');
      assertRefused(await post({ origin: 'null' }), isClientError, 'a page without an origin');
      assertRefused(await post({ host: 'evil.example' }), isClientError, 'a foreign host');
      const read = await rawRequest(`${api.url}/v1/sessions`, { headers: { host: 'evil.example' } });
      assertRefused(read, isClientError, 'a foreign host that only reads');
      assertRefused(await api.call('GET', `/v1/sessions/${id}`), 404, 'the session, which is not there,');
      assert.equal((await post({ origin: `http://${host}` })).status, 200, 'our own origin is let in');
    },
  },
  {
    name: 'refused: a request without the token',
    run: async ({ startDaemon, id }) => {
      const { api, url } = await startDaemon('[server]\ntoken = "opensesame-opensesame-opensesame"\n');
      assertRefused(await api.call('GET', '/v1/sessions'), 401, 'no token');
      const wrong = { authorization: 'Bearer other' };
      assertRefused(await api.call('GET', '/v1/sessions', undefined, wrong), 401, 'a wrong token');
      assertRefused(await api.call('POST', '/api/chat', chatBody(id)), 401, 'a chat without it');
      const headers = { authorization: 'Bearer opensesame-opensesame-opensesame' };
      const chat = openChat({ url, id, headers });
      await chat.sendMessage({ text: 'hello' });
      assert.equal(chat.status, 'ready', `with the token: ${chat.error}`);
    },
  },
];
