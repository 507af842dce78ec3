// What a client sends: again, instead, or twice.

import assert from 'node:assert/strict';

import { openChat, VERSIONS } from '../chat.mjs';
import { assertNumbered, assertSameMessages, assertWholeRun, said } from '../chunks.mjs';
import { openStream, readStream } from '../sse.mjs';

/** A chat after some whole turns. */
async function talked({ api, id }, version, ...texts) {
  const chat = openChat({ version, url: api.url, id });
  for (const text of texts) {
    await chat.sendMessage({ text });
    assert.equal(chat.status, 'ready', `${text}: ${chat.error}`);
  }
  assertSameMessages(chat.messages, await api.messages(id), 'the client holds what is stored');
  assert.equal(chat.messages.length, 2 * texts.length);
  return chat;
}

const JSON_TYPE = { 'content-type': 'application/json' };
const post = (body) => ({ method: 'POST', body: JSON.stringify(body), headers: JSON_TYPE });

export const send = [
  ...VERSIONS.flatMap((version) => [
    {
      name: `send: turns follow each other (ai ${version})`,
      run: async (scene) => {
        const chat = await talked(scene, version, 'one', '/tool', 'three');
        const ids = chat.messages.map((message) => message.id);
        assert.equal(new Set(ids).size, 6, 'each message has an id of its own');
        for (const recording of chat.recordings) await assertWholeRun(recording);
        const events = chat.recordings.flatMap((recording) => recording.events);
        assert.equal(events[0].id, '1');
        assertNumbered(events); // the session counts its events through all runs
      },
    },
    {
      name: `send: regenerate replaces the answer (ai ${version})`,
      run: async (scene) => {
        const chat = await talked(scene, version, 'one');
        const [user, old] = chat.messages;
        await chat.regenerate();
        assert.equal(chat.status, 'ready', `${chat.error}`);
        await assertWholeRun(chat.recording);
        const stored = await scene.api.messages(scene.id);
        assertSameMessages(chat.messages, stored, 'the client holds what is stored');
        assert.deepEqual(stored.map((message) => message.role), ['user', 'assistant']);
        assert.equal(stored[0].id, user.id, 'the question is the same message');
        assert.notEqual(stored[1].id, old.id, 'the answer is a new message');
        assert.equal((await scene.api.runs(scene.id)).length, 2);
      },
    },
    {
      name: `send: regenerate of an earlier answer drops what came after (ai ${version})`,
      run: async (scene) => {
        const chat = await talked(scene, version, 'one', 'two');
        const [user, old] = chat.messages;
        await chat.regenerate({ messageId: old.id });
        assert.equal(chat.status, 'ready', `${chat.error}`);
        const stored = await scene.api.messages(scene.id);
        assertSameMessages(chat.messages, stored, 'the client holds what is stored');
        assert.equal(stored.length, 2);
        assert.equal(stored[0].id, user.id);
        assert.notEqual(stored[1].id, old.id);
      },
    },
    {
      name: `send: an edit replaces the message and what came after (ai ${version})`,
      run: async (scene) => {
        const chat = await talked(scene, version, 'one', 'two');
        const [user, old] = chat.messages;
        await chat.sendMessage({ text: 'one, but better', messageId: user.id });
        assert.equal(chat.status, 'ready', `${chat.error}`);
        await assertWholeRun(chat.recording);
        const stored = await scene.api.messages(scene.id);
        assertSameMessages(chat.messages, stored, 'the client holds what is stored');
        assert.equal(stored.length, 2);
        assert.equal(stored[0].id, user.id);
        assert.deepEqual(stored[0].parts, [{ type: 'text', text: 'one, but better' }]);
        assert.notEqual(stored[1].id, old.id, 'the answer is a new message');
        assert.equal((await scene.api.runs(scene.id)).length, 3);
      },
    },
    {
      name: `send: regenerate with another text is an edit (ai ${version})`,
      run: async (scene) => {
        const chat = await talked(scene, version, 'one', 'two');
        const [user] = chat.messages;
        chat.messages = [{ ...user, parts: [{ type: 'text', text: 'one, but better' }] }];
        await chat.regenerate();
        assert.equal(chat.status, 'ready', `${chat.error}`);
        assert.match(said(chat.lastMessage), /one, but better/);
        assertSameMessages(chat.messages, await scene.api.messages(scene.id), 'the client holds what is stored');
        assert.equal((await scene.api.runs(scene.id)).length, 3);
      },
    },
    {
      name: `send: regenerate of a message that never arrived is a send (ai ${version})`,
      run: async ({ api, id }) => {
        const chat = openChat({ version, url: api.url, id });
        chat.messages = [{ id: 'm-lost', role: 'user', parts: [{ type: 'text', text: 'hello again' }] }];
        await chat.regenerate();
        assert.equal(chat.status, 'ready', `${chat.error}`);
        assert.match(said(chat.lastMessage), /hello again/);
        assertSameMessages(chat.messages, await api.messages(id), 'the client holds what is stored');
      },
    },
  ]),
  {
    name: 'send: the same chat message twice starts one run',
    run: async ({ api, id }) => {
      const messages = [{ id: 'm-1', role: 'user', parts: [{ type: 'text', text: '/slow 20' }] }];
      const sendIt = () => readStream(`${api.url}/api/chat`, post({ id, messages, trigger: 'submit-message' }));
      const twice = await Promise.all([sendIt(), sendIt()]);
      const later = await sendIt();
      for (const recording of [...twice, later]) {
        await assertWholeRun(recording);
        assert.deepEqual(recording.events, twice[0].events, 'every stream is the same');
      }
      assert.equal((await api.runs(id)).length, 1, 'there is one run');
      assert.deepEqual((await api.messages(id)).map((message) => message.role), ['user', 'assistant']);
    },
  },
  {
    name: 'send: the same message twice to a session starts one run',
    run: async ({ api, id }) => {
      const body = { message: { id: 'm-1', text: 'hello' } };
      const sendIt = () => api.call('POST', `/v1/sessions/${id}/runs`, body);
      const [one, other] = await Promise.all([sendIt(), sendIt()]);
      assert.deepEqual([one.status, other.status].sort(), [200, 202], 'one is accepted, one is known');
      assert.equal(one.body.id, other.body.id, 'both name the same run');
      await api.settled(one.body.id);
      const later = await sendIt();
      assert.equal(later.status, 200);
      assert.equal(later.body.id, one.body.id);
      assert.equal(later.body.status, 'completed');
      assert.equal((await api.runs(id)).length, 1, 'there is one run');
    },
  },
  {
    name: 'send: a run can be followed in the request that starts it',
    run: async ({ api, id }) => {
      const message = { id: 'm-1', text: '/tool' };
      const { response, recording } = await openStream(`${api.url}/v1/sessions/${id}/runs`, post({ message }));
      await assertWholeRun(recording);
      assert.match(response.headers.get('content-type'), /^text\/event-stream/);
      const types = recording.chunks.map((chunk) => chunk.type);
      for (const type of ['tool-input-available', 'tool-output-available']) {
        assert.ok(types.includes(type), `/tool gave no ${type}: ${types.join(' ')}`);
      }
    },
  },
  {
    name: 'send: messages to a busy session are answered in order',
    run: async ({ api, id }) => {
      const first = await api.send(id, '/slow 30', 'm-1');
      const second = await api.send(id, 'two', 'm-2');
      const third = await api.send(id, 'three', 'm-3');
      const runs = await Promise.all([first, second, third].map((run) => api.settled(run.id)));
      assert.deepEqual(runs.map((run) => run.status), ['completed', 'completed', 'completed']);
      const stored = await api.messages(id);
      const expected = runs.flatMap((run) => [run.message_id, run.response_id]);
      assert.deepEqual(stored.map((message) => message.id), expected, 'questions and answers alternate');
    },
  },
];
